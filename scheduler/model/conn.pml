/*
 * Where a connection is (Conn.duty in errand.go): at home, away with a worker, or away and awaited by its loop. The loop is given
 * events; what it cannot handle because the connection is away it keeps. One callback at a time, and no event is lost.
 *
 * BUG=1  the worker stores home instead of comparing and swapping
 * BUG=2  the loop keeps an event and does not say so
 * BUG=3  the loop runs a callback although one is away
 */
#ifndef BUG
#define BUG 0
#endif

#define EVENTS 4

mtype = { Home, Away, Awaited };

mtype duty = Home;
byte queue;	/* of the scheduler */
byte letter;	/* in the loop's mailbox */
byte kept;
byte inside;	/* callbacks */
byte served;

inline callback() {
	if
	:: inside++; assert(inside == 1); served++; inside--	/* here */
	:: duty = Away; queue++	/* on a worker */
	fi
}

inline event() {
	s = duty;
	if
	:: s == Home -> callback()
#if BUG == 2
	:: s != Home -> kept++
#elif BUG == 3
	:: s != Home -> callback()
#else
	:: s == Away ->
		atomic { ok = (duty == Away); if :: ok -> duty = Awaited :: else fi };
		if :: ok -> kept++ :: else -> callback() fi	/* It has just come home. */
	:: s == Awaited -> kept++
#endif
	fi
}

proctype loop() {
	byte n; byte k; mtype s; bool ok;
	do
	:: n < EVENTS -> n++; event()
	:: letter > 0 ->
		letter--;
		assert(duty != Home);
		k = kept; kept = 0;
		duty = Home;
		do
		:: k > 0 -> k--; event()
		:: k == 0 -> break
		od
	od
}

proctype worker() {
	bool ok;
	do
	:: atomic { queue > 0 -> queue-- };
		inside++;
		assert(inside == 1);
		served++;
		inside--;
#if BUG == 1
		duty = Home
#else
		atomic { ok = (duty == Away); if :: ok -> duty = Home :: else fi };
		if :: ok :: else -> letter++ fi
#endif
	od
}

init {
	atomic { run loop(); run worker(); run worker() };
	(timeout);
	assert(duty == Home && queue == 0 && letter == 0 && inside == 0);
	assert(kept == 0 && served == EVENTS)
}
