//go:build cgo

#define _GNU_SOURCE
#include "attend.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
	us = 1000,
	ms = 1000 * us,
	tick = 100 * us,         // between two wake-ups while the loop has to wait for its P
	tick_idle = tick / 2,    // less CPU time than that in a tick: the loop sleeps
	look = 4 * ms,           // between two looks at a loop that has not
	look_demoted = 1 * ms,   // at one without its priority
	patience = 5 * ms,       // how much CPU time may pass without a pulse
	patience_asked = 1 * ms, // of a loop that was asked to give up its P
	ticks_most = 500,        // for one such request
	stack_size = 64 * 1024,
};

static int64_t nanos(clockid_t clock) {
	struct timespec t;
	if (clock_gettime(clock, &t) != 0)
		return 0;
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

// The clock of a thread's CPU time, as the kernel numbers it (include/linux/posix-timers_types.h).
static clockid_t cpu_clock(int thread) { return (clockid_t)((~(unsigned)thread << 3) | 6); }

// By the system call: musl's function has no effect.
static int schedule(int thread, int policy, int priority) {
	struct sched_param p = {.sched_priority = priority};
	return syscall(SYS_sched_setscheduler, thread, policy, &p) == 0 ? 0 : errno;
}

static void rest(long time) {
	struct timespec t = {0, time};
	nanosleep(&t, NULL);
}

static int set_up(struct pollux_attendant *a) {
	prctl(PR_SET_NAME, a->name);
	if (a->cpu >= 0) {
		cpu_set_t set;
		CPU_ZERO(&set);
		CPU_SET(a->cpu, &set);
		if (sched_setaffinity(0, sizeof set, &set) != 0)
			return errno;
	}
	return schedule(0, SCHED_FIFO, a->priority + 1);
}

static void call_usher(struct pollux_attendant *a) {
	const uint64_t one = 1;
	// It is not full: the usher empties it. If it were, the usher would be on its way.
	if (write(a->usher, &one, sizeof one) == sizeof one)
		__atomic_add_fetch(&a->calls, 1, __ATOMIC_RELAXED);
}

static void attend(struct pollux_attendant *a) {
	const clockid_t clock = cpu_clock(a->loop);
	uint64_t pulse = 0;           // as it was last seen
	int64_t since = nanos(clock); // the loop's CPU time then: its thread may have worked for others before
	int64_t before = since;       // and at the last look
	uint32_t asked = 0;           // as it was last seen
	int left = 0;                 // of the ticks
	bool demoted = false;

	while (!__atomic_load_n(&a->stop, __ATOMIC_ACQUIRE)) {
		if (left > 0) {
			left--;
			rest(tick);
			__atomic_add_fetch(&a->ticks, 1, __ATOMIC_RELAXED);
		} else if (demoted) {
			rest(look_demoted);
		} else {
			struct timespec t = {0, look};
			syscall(SYS_futex, &a->asked, FUTEX_WAIT_PRIVATE, asked, &t, NULL, 0);
		}
		// asked before pulse: a request that comes in between ends the next sleep.
		const uint32_t asked_now = __atomic_load_n(&a->asked, __ATOMIC_ACQUIRE);
		const uint64_t pulse_now = __atomic_load_n(&a->pulse, __ATOMIC_RELAXED);
		const int64_t used = nanos(clock);
		const bool moved = pulse_now != pulse;
		if (asked_now != asked) {
			// Its wait has ended, although the pulse may not say so yet.
			asked = asked_now;
			left = ticks_most;
		} else if (moved && pulse_now & 1) {
			left = 0; // It waits again.
		} else if (left > 0 && used - before < tick_idle) {
			call_usher(a);
		}
		before = used;
		if (moved) {
			pulse = pulse_now;
			since = used;
			if (demoted && schedule(a->loop, SCHED_FIFO, a->priority) == 0)
				demoted = false;
		} else if (!demoted && used - since > (left > 0 ? patience_asked : patience) && schedule(a->loop, SCHED_OTHER, 0) == 0) {
			demoted = true;
			__atomic_add_fetch(&a->demotions, 1, __ATOMIC_RELAXED);
		}
	}
}

static void *run(void *arg) {
	struct pollux_attendant *a = arg;
	a->thread = (int32_t)syscall(SYS_gettid);
	a->error = set_up(a);
	const bool fine = a->error == 0;
	sem_post(&a->begun);
	if (fine)
		attend(a);
	return NULL;
}

int pollux_attend(struct pollux_attendant *a) {
	pthread_attr_t attr;
	int error = pthread_attr_init(&attr);
	if (error != 0)
		return error;
	pthread_attr_setstacksize(&attr, stack_size);
	sem_init(&a->begun, 0, 0);
	// No signal of the process is delivered to it: Go's handlers are not made for such a thread.
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = pthread_create(&a->handle, &attr, run, a);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	if (error == 0) {
		while (sem_wait(&a->begun) != 0) // A signal.
			;
		if ((error = a->error) != 0)
			pthread_join(a->handle, NULL);
	}
	if (error != 0)
		sem_destroy(&a->begun);
	return error;
}

void pollux_attend_end(struct pollux_attendant *a) {
	__atomic_store_n(&a->stop, 1, __ATOMIC_RELEASE);
	__atomic_add_fetch(&a->asked, 1, __ATOMIC_RELEASE);
	syscall(SYS_futex, &a->asked, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	pthread_join(a->handle, NULL);
	sem_destroy(&a->begun);
}
