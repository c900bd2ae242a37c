/*
 * Parking and waking of the dispatcher's workers (W1 to W3 and P1 to P4 at scheduler.Dispatcher): no wake-up is lost.
 *
 * Two pushers put four items into two queues and wake. Two workers sleep at first. Items block in pairs: the first until
 * the second has been started, so both workers are needed at once, and it is not enough that somebody is awake. A steal takes half and
 * puts the others into the thief's own queue in a second step, in which they are in no queue.
 *
 * BUG=1  a worker does not look again after it is in the idle set (P3)
 * BUG=2  who gives up the search does not look whether anything is left (the duty)
 * BUG=3  a worker looks again before it is in the idle set (P3 before P1)
 * BUG=4  a thief that has moved items does not do as a waker does
 */
#ifndef BUG
#define BUG 0
#endif

#define WORKERS 2
#define QUEUES  4	/* 0 and 1 are sources; WORKERS behind them, one a worker */
#define ITEMS   4

byte queue[QUEUES];
bool idle[WORKERS];
bool bell[WORKERS];
bool searching;
byte started;

/* any tells whether an item is in any queue: one load at a time. */
inline look() {
	any = false; i = 0;
	do
	:: i < QUEUES ->
		if
		:: queue[i] > 0 -> any = true; break
		:: else -> i++
		fi
	:: else -> break
	od
}

/* The idle set is one word here as there: it is loaded, and a bit of it is taken, in one step. */
inline wake() {
	do
	:: searching -> break				/* W1 */
	:: !searching ->
		if
		:: !idle[0] && !idle[1] -> break	/* W2 */
		:: idle[0] || idle[1]
		fi;
		atomic { mine = !searching; searching = true };
		if
		:: !mine -> break
		:: mine
		fi;
		atomic {				/* W3 */
			if
			:: idle[0] -> i = 0; idle[0] = false; mine = true
			:: !idle[0] && idle[1] -> i = 1; idle[1] = false; mine = true
			:: else -> mine = false
			fi
		};
		if
		:: mine -> bell[i] = true; break
		:: !mine -> searching = false;
			look();
			if :: any :: !any -> break fi
		fi
	od;
	skip;
	d_step { i = 0; any = false; mine = false }	/* not looked at again: states that differ in it are the same */
}

proctype pusher(byte q; byte n) {
	byte i; bool any, mine;
	do
	:: n > 0 -> queue[q]++; n--
	:: else -> break
	od;
	wake()
}

proctype worker(byte w) {
	byte i, q, got; bool any, mine, search, duty, moved;

park:
	bell[w] = false;
#if BUG == 3
	look();
	if :: search -> searching = false :: else fi;
	idle[w] = true;		/* too late */
#else
	idle[w] = true;		/* P1 */
	if :: search -> searching = false; search = false :: else fi;	/* P2 */
	look();			/* P3 */
#endif
#if BUG == 1
	any = false;
#endif
	search = false; duty = true;
	if
	:: any -> atomic { if :: idle[w] -> idle[w] = false; mine = true :: else -> mine = false fi };
		if
		:: mine
		:: else -> (bell[w]); search = true
		fi
	:: else -> (bell[w]); search = true	/* P4 */
	fi;

take:
	skip;
	d_step { moved = false; q = 0; any = false; mine = false; i = 0 };
	atomic { if :: queue[2 + w] > 0 -> queue[2 + w]--; got = 1 :: else -> got = 0 fi };
	do
	:: got == 0 && q < QUEUES ->
		if
		:: q != 2 + w -> atomic { got = (queue[q] + 1) / 2; queue[q] = queue[q] - got; q++ }
		:: else -> q++
		fi;
		if
		:: got > 1 -> queue[2 + w] = queue[2 + w] + got - 1; moved = true
		:: else
		fi
	:: else -> break
	od;
	if :: got == 0 -> q = 0; goto park :: else fi;

	if :: search -> search = false; duty = true; searching = false :: else fi;
	any = false;
#if BUG != 2
	if :: duty && !moved -> look() :: else fi;
#endif
#if BUG == 4
	moved = false;
#endif
	if :: moved || any -> wake() :: else fi;
	skip;
	d_step { duty = false; moved = false; any = false; i = 0; q = 0; got = 0 };

	atomic { started++; got = started + started % 2 };
	(started >= got);
	goto take
}

init {
	atomic { run worker(0); run worker(1) };
	atomic { run pusher(0, 3); run pusher(1, 1) };
	(timeout);
	assert(started == ITEMS)
}
