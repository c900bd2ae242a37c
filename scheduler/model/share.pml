/*
 * poller.Loop.Share: two threads run a loop by turns, a poster posts to it, and somebody stops it. Sharing is switched off and on
 * again; a callback may be stuck, and its thread is relieved. No wake-up is lost: when nothing moves any more, every post has
 * run, a loop that was stopped has ended, and nobody waits on its backend. A callback that is stuck, while the loop is shared, holds
 * up nothing that was posted after it began.
 *
 * BUG=1  a look for events leaves a Break that it has met unanswered
 * BUG=2  who leaves with a Break drops it
 * BUG=3  a post wakes only an owner that sleeps, though it may be stuck
 * BUG=4  sharing is switched on with a Break unanswered
 * BUG=5  who leaves does not look whether the loop is shared again meanwhile
 */
#ifndef BUG
#define BUG 0
#endif

#define POSTS    2
#define SWITCHES 2
#define FREE     0
#define OWNED    1

byte posted, mail;	/* posts that were made, and that have not run */
bool parked;
bool waking;		/* Breaks coalesce with the one that is under way */
bool event;		/* the eventfd's, in the kernel: one of those who wait takes it */
bool broken;		/* the owner's: a look has met a Break that is not answered */
bool stopped, ended;
bool on = true;		/* the loop is shared */
byte owner = OWNED;	/* by thread 0 */
bool stuck;		/* the owner's callback does not return */
bool late;		/* and something was posted since */
bool returns;		/* it does now */
byte threads = 2;	/* that run the loop, or wait to */
byte spare;		/* threads that nobody needs at present */
bool called;		/* one of them is needed */
byte switches, stops;

inline Break() {
	atomic { claimed = !waking; waking = true };
	if :: claimed -> event = true :: else fi
}

inline post() {
	atomic { mail++; posted++; late = stuck };
	wake = false;
	if
	:: parked -> atomic { wake = parked; parked = false }
	:: !parked
	fi;
#if BUG == 3
	if :: wake -> Break() :: else fi
#else
	if :: wake -> Break() :: !wake && on -> Break() :: else fi
#endif
}

proctype poster() {
	bool claimed, wake;
	do
	:: posted < POSTS -> post()
	:: else -> break
	od
}

proctype stopper() {
	bool claimed;
	atomic { stopped = true; late = stuck };
	Break()
}

proctype thread(bool follow) {
	bool woken, took;
	if :: follow -> goto waits :: else fi;
turn:
	parked = false;
	mail = 0;
	if	/* in a callback, or after all */
	:: switches < SWITCHES -> switches++;
		if
		:: on -> on = false
		:: else ->
#if BUG != 4
			if :: broken -> broken = false; waking = false :: else fi;
#endif
			on = true;
			atomic { if :: threads == 1 && spare > 0 -> threads++; called = true; spare-- :: else fi }
		fi
	:: on && threads == 2 && stops == 0 -> stops++; stuck = true;
		do
		:: !stuck -> goto gone	/* relieved */
		:: atomic { returns && stuck -> stuck = false }; break
		od
	:: true
	fi;
	if
	:: stopped -> goto last
	:: else
	fi;
	if
	:: mail > 0 -> goto look
	:: else
	fi;
	parked = true;
	if
	:: mail > 0 -> parked = false; goto look
	:: else
	fi;
	if
	:: on ->
		owner = FREE;
		goto waits
	:: else
	fi;
	/* Wait, by itself */
	if
	:: broken
	:: else -> atomic { event -> event = false }
	fi;
	broken = false; waking = false;
	goto turn;
look:
	atomic { if :: event -> event = false; broken = true :: else fi };
#if BUG != 1
	if :: on && broken -> broken = false; waking = false :: else fi;
#endif
	goto turn;
waits:
	atomic { event -> event = false };
	woken = true;
	took = false;
	do	/* own */
	:: atomic { owner == FREE -> owner = OWNED }; break
	:: atomic { stuck && !returns -> stuck = false; late = false; threads-- }; break
	:: !on -> goto leaves
	od;
	if :: woken -> waking = false :: else fi;
	goto turn;
leaves:
#if BUG != 2
	event = true;
#endif
	threads--;
#if BUG != 5
	atomic { if :: on && threads == 1 -> threads++; goto waits :: else fi };
#endif
	goto gone;
last:
	on = false;
	do
	:: threads > 1 && !event -> event = true
	:: threads == 1 -> break
	od;
	ended = true;
	goto done;
gone:
	spare++;
	atomic { called -> called = false };
	goto waits;
done:
	skip
}

init {
	atomic { run thread(false); run thread(true); run poster(); run stopper() };
	(timeout);
	assert(!stuck || !late);
	returns = true;
	(timeout);
	assert(ended);
	assert(mail == 0 || stopped)
}
