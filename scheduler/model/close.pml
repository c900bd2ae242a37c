/*
 * The end of a dispatcher: Close against a loop that pushes to its source, somebody who submits, and two workers. No item is
 * started after Close has returned, whether the items that run have ended or its context has; each item was run, or is in what
 * Close returns, or was refused: one of these, and never none.
 *
 * BUG=1  Close, when its context ends, does not wait for workers that are between two items
 * BUG=2  a pusher does not look again after it has pushed
 * BUG=3  a pusher that finds the dispatcher closed counts on the drain, which may have been
 * BUG=4  a worker drops the item that it has in hand
 * BUG=5  a worker looks whether it may start the item and starts it in two steps
 */
#ifndef BUG
#define BUG 0
#endif

#define WORKERS 2
#define PUSHERS 2
#define EACH    2
#define ITEMS   4
#define SIZE    4

typedef Queue { byte item[SIZE]; byte head; byte tail };

Queue queue[PUSHERS];		/* the source and the injector: a push is one step here */
bool closed, drained, returned;
bool running[WORKERS], shut[WORKERS], ended[WORKERS];
bool mu;
byte ran[ITEMS + 1], left[ITEMS + 1], refused[ITEMS + 1];

#define lock()   atomic { !mu -> mu = true }
#define unlock() mu = false

proctype pusher(byte p) {
	byte n, item, at; bool ok;
	do
	:: n < EACH ->
		n++; item = p * EACH + n;
		if
		:: closed -> refused[item]++
		:: else ->
			atomic { at = queue[p].tail; queue[p].item[at] = item; queue[p].tail++ };
			ok = true;
#if BUG != 2
			if
			:: closed ->
#if BUG != 3
				lock();
				ok = !drained || at < queue[p].head;
				unlock()
#endif
			:: else
			fi;
#endif
			d_step { if :: !ok -> refused[item]++ :: else fi; ok = false; at = 0 }
		fi
	:: else -> break
	od
}

proctype worker(byte w) {
	byte q, item; bool ok;
	do
	:: closed -> break
	:: !closed ->
		item = 0; q = 0;
		do
		:: item == 0 && q < PUSHERS ->
			atomic {
				if
				:: queue[q].head < queue[q].tail -> item = queue[q].item[queue[q].head]; queue[q].head++
				:: else
				fi
			};
			q++
		:: else -> break
		od;
		if
		:: item == 0 ->	/* it sleeps; parking is another model */
			(closed || queue[0].head < queue[0].tail || queue[1].head < queue[1].tail)
		:: else ->
#if BUG == 5
			ok = !shut[w];
#endif
			atomic {
#if BUG != 5
				ok = !shut[w];
#endif
				running[w] = ok;
				assert(!ok || !shut[w] && !returned)
			};
			if
			:: ok ->
				ran[item]++;
				running[w] = false
			:: else ->
#if BUG != 4
				lock(); assert(!drained); left[item]++; unlock();
#endif
				break
			fi
		fi;
		d_step { item = 0; q = 0; ok = false }	/* not looked at again */
	od;
	lock(); ended[w] = true; unlock()
}

#define settled(w) (ended[w] || running[w])

proctype closer() {
	byte w, q; bool forced;
	lock(); closed = true; unlock();
	do
	:: w < WORKERS -> shut[w] = true; w++
	:: else -> break
	od;
	if
	:: ended[0] && ended[1]
	:: forced = true -> (true)	/* the context has ended */
	fi;
	/* settle looks at both under the lock that a worker ends under, until none is in between. */
#if BUG != 1
	atomic { !mu && settled(0) && settled(1) -> mu = true };
	unlock();
#endif
	lock();
	do
	:: q < PUSHERS ->
		do
		:: atomic { queue[q].head < queue[q].tail -> left[queue[q].item[queue[q].head]]++; queue[q].head++ }
		:: queue[q].head == queue[q].tail -> break
		od;
		q++
	:: else -> break
	od;
	drained = true;
	unlock();
	returned = true;
	if :: !forced -> assert(!running[0] && !running[1]) :: else fi
}

init {
	byte i = 1;
	atomic { run pusher(0); run pusher(1); run worker(0); run worker(1); run closer() };
	(timeout);
	assert(returned && ended[0] && ended[1]);
	do
	:: i <= ITEMS -> assert(ran[i] + left[i] + refused[i] == 1); i++
	:: else -> break
	od
}
