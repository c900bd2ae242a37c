/*
 * poller.Mailbox: two posters and the owner, who sleeps when the box is empty and closes it at some time. No wake-up is
 * lost, each letter that was accepted is taken once, those of one poster in their order, and close loses none.
 *
 * BUG=1  park looks into the box before it says that the owner is parked
 * BUG=2  the box is emptied by a load and a store instead of a swap
 */
#ifndef BUG
#define BUG 0
#endif

#define POSTERS 2
#define EACH    2
#define LETTERS 4
#define NIL     0
#define SHUT    9	/* letters are 1 to LETTERS */

byte head = NIL;
byte next[LETTERS + 1];
bool parked;
bool signal;		/* the backend's Break: coalesced, kept until the wait that it ends */
bool accepted[LETTERS + 1];
byte taken[LETTERS + 1];
byte posting = POSTERS;
bool closed;

proctype poster(byte p) {
	byte l, h, n; bool ok;
	do
	:: n < EACH ->
		l = 1 + p * EACH + n; n++;
		do
		:: h = head;
			next[l] = h;
			if :: h == SHUT -> break :: else fi;
			atomic { ok = (head == h); if :: ok -> head = l; accepted[l] = true :: else fi };
			if
			:: ok ->
				if	/* claimWake */
				:: parked ->
					atomic { ok = parked; if :: ok -> parked = false :: else fi };
					if :: ok -> signal = true :: else fi
				:: !parked
				fi;
				break
			:: else
			fi
		od
	:: else -> break
	od;
	posting--
}

inline takeAll(with) {
#if BUG == 2
	chain = head; head = with;
#else
	atomic { chain = head; head = with };
#endif
	oldest = NIL;
	do
	:: chain != NIL && chain != SHUT -> h = next[chain]; next[chain] = oldest; oldest = chain; chain = h
	:: else -> break
	od;
	do
	:: oldest != NIL ->
		taken[oldest]++;
		assert(taken[oldest] == 1);
		assert((oldest - 1) % EACH == 0 || taken[oldest - 1] == 1);
		oldest = next[oldest]
	:: else -> break
	od
}

proctype owner() {
	byte chain, oldest, h; bool sleep;
	do
	:: true ->
		if :: head != NIL -> takeAll(NIL) :: else fi;
#if BUG == 1
		sleep = (head == NIL);
		parked = true;
		if :: !sleep -> parked = false :: else fi;
#else
		parked = true;
		if :: head != NIL -> parked = false; sleep = false :: else -> sleep = true fi;
#endif
		if
		:: sleep -> (signal); signal = false
		:: else
		fi;
		if :: parked -> parked = false :: else fi
	:: true -> break
	od;
	takeAll(SHUT);
	closed = true
}

init {
	byte i = 1;
	atomic { run owner(); run poster(0); run poster(1) };
	(timeout);
	/* An owner that sleeps for ever must have nothing to take. */
	assert(head == NIL || head == SHUT);
	do
	:: i <= LETTERS -> assert(taken[i] == accepted[i]); assert(accepted[i] || closed); i++
	:: else -> break
	od
}
