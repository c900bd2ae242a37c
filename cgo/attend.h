// The attendant of a realtime thread: see attend_cgo_linux.go.
#ifndef POLLUX_ATTEND_H
#define POLLUX_ATTEND_H

#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>

struct pollux_attendant {
	// Both sides use these, as atomics.
	uint64_t pulse;     // the loop's: it counts up when a wait begins and when it has ended, so that it is odd during waits
	uint32_t asked;     // a futex: counts up when a signal has ended a wait
	uint32_t stop;      // the attendant is to end
	uint64_t ticks;     // the attendant's: wake-ups that had the kernel choose anew
	uint64_t demotions; // and times that it took the priority from the loop
	uint64_t calls;     // and times that it called the usher

	int32_t loop;     // its thread's id
	int32_t cpu;      // that both are pinned to; -1: none
	int32_t priority; // the loop's; the attendant's is one above
	int32_t usher;    // an eventfd that does not block: calls the usher
	char name[16];    // the attendant's

	int32_t thread; // its id, once it runs
	int32_t error;  // what has kept it from running
	sem_t begun;
	pthread_t handle;
};

// Starts an attendant. The counters, asked and stop are 0. Returns 0, or an errno: then there is none.
int pollux_attend(struct pollux_attendant *a);

// Ends it. A loop that has lost its priority stays without: it ends, too.
void pollux_attend_end(struct pollux_attendant *a);

#endif
