/*
 * The state word of a connection: idle, queued, running, running+again. Two producers say that it is ready; two workers
 * run its callback, which takes everything that is there. One callback at a time, and no readiness is lost.
 *
 * BUG=1  the end of a callback stores idle instead of comparing and swapping
 * BUG=2  a producer that finds the callback running leaves it at that
 * BUG=3  a producer queues the connection although its callback runs
 */
#ifndef BUG
#define BUG 0
#endif

#define EVENTS 2	/* of each producer */

mtype = { Idle, Queued, Running, Again };

mtype state = Idle;
byte queue;	/* how often the connection is in the queue */
byte ready;	/* what the socket has */
byte inside;	/* callbacks */
byte served;

proctype producer() {
	byte n; mtype s; bool ok;
	do
	:: n < EVENTS ->
		n++;
		ready++;	/* the kernel's part: data is there before the event */
		do
		:: s = state;
			if
			:: s == Idle -> atomic { ok = (state == s); if :: ok -> state = Queued :: else fi };
				if :: ok -> queue++; break :: else fi
			:: s == Queued -> break	/* whoever takes it sees the data: it drains after it has left Queued */
			:: s == Running ->
#if BUG == 2
				break
#elif BUG == 3
				atomic { ok = (state == s); if :: ok -> state = Queued :: else fi };
				if :: ok -> queue++; break :: else fi
#else
				atomic { ok = (state == s); if :: ok -> state = Again :: else fi };
				if :: ok -> break :: else fi
#endif
			:: s == Again -> break
			fi
		od
	:: else -> break
	od
}

proctype worker() {
	bool ok;
	do
	:: atomic { queue > 0 -> queue-- };
		assert(state == Queued);
		state = Running;
		inside++;
		assert(inside == 1);
		/* It reads until there is nothing; more may come behind it. */
		do
		:: atomic { ready > 0 -> ready--; served++ }
		:: ready == 0 -> break
		od;
		inside--;
#if BUG == 1
		ok = (state == Running);
		if :: ok -> state = Idle :: else fi;
#else
		atomic { ok = (state == Running); if :: ok -> state = Idle :: else fi };
#endif
		if
		:: ok
		:: else -> state = Queued; queue++	/* Again: behind the others */
		fi
	od
}

init {
	atomic { run producer(); run producer(); run worker(); run worker() };
	(timeout);
	assert(state == Idle && queue == 0 && inside == 0);
	assert(ready == 0 && served == 2 * EVENTS)
}
