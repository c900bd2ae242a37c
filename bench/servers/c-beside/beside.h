// beside.h: what runs beside the echo servers in C, in their process and on their CPU, as internal/server has it for those
// in Go: threads that compute (-burn) and threads that allocate (-churn), which count what they do in a file (-progress).
//
// SCHED=fifo:N runs the server's own thread under SCHED_FIFO at priority N, as POLLUX_SCHED does for the thread of a loop.
// With both, the server is what a service can have at best on the machine while its process is busy.
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

// beside_counts is internal/progress.Counts.
struct beside_counts {
	_Atomic uint64_t computed, allocated;
};

static struct beside_counts beside_uncounted, *beside_done = &beside_uncounted;
static _Atomic uint64_t beside_burned; // Where the results go, so that the compiler cannot drop the work.

// beside_burn is internal/server's burn: rounds of about a millisecond.
static void *beside_burn(void *seed) {
	uint64_t x = (uint64_t)(uintptr_t)seed * 2 + 1;
	for (;;) {
		for (int i = 0; i < 1 << 20; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
		}
		atomic_fetch_add(&beside_burned, x);
		atomic_fetch_add(&beside_done->computed, 1);
	}
	return NULL;
}

// beside_churn is internal/server's churn, with free where Go has its collector.
static void *beside_churn(void *unused) {
	enum { OBJECTS = 1000000, WORDS = 8 };
	(void)unused;
	uint64_t **objects = calloc(OBJECTS, sizeof *objects);
	for (uint64_t i = 0; objects != NULL; i++) {
		uint64_t *object = calloc(WORDS, sizeof *object);
		if (object == NULL) break;
		object[0] = i;
		free(objects[i % OBJECTS]);
		objects[i % OBJECTS] = object;
		atomic_fetch_add(&beside_done->allocated, 1);
	}
	fprintf(stderr, "-churn: %s\n", strerror(ENOMEM));
	exit(1);
}

static long beside_number(const char *flag, const char *text) {
	char *end;
	long n = strtol(text, &end, 10);
	if (*text == 0 || *end != 0 || n < 0 || n > 1000) {
		fprintf(stderr, "%s %s: 0 to 1000 is allowed\n", flag, text);
		exit(2);
	}
	return n;
}

static void beside_start(const char *what, void *(*run)(void *), long threads) {
	for (long i = 0; i < threads; i++) {
		pthread_t thread;
		int err = pthread_create(&thread, NULL, run, (void *)(uintptr_t)i);
		if (err != 0) {
			fprintf(stderr, "%s: %s\n", what, strerror(err));
			exit(1);
		}
	}
}

// beside starts what the flags ask for and gives the calling thread the priority that SCHED asks for. It is called once, when
// the server listens and before it says so.
static void beside(int argc, char **argv) {
	long burn = 0, churn = 0;
	for (int i = 1; i + 1 < argc; i += 2) {
		const char *flag = argv[i], *value = argv[i + 1];
		if (strcmp(flag, "-burn") == 0) {
			burn = beside_number(flag, value);
		} else if (strcmp(flag, "-churn") == 0) {
			churn = beside_number(flag, value);
		} else if (strcmp(flag, "-progress") == 0) {
			int fd = open(value, O_RDWR | O_CLOEXEC);
			void *p = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *beside_done, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
			if (p == MAP_FAILED) {
				fprintf(stderr, "-progress %s: %s\n", value, strerror(errno));
				exit(1);
			}
			close(fd);
			beside_done = p;
		} else if (strcmp(flag, "-sleep") == 0 || strcmp(flag, "-compute") == 0 || strcmp(flag, "-cost") == 0) {
			if (strcmp(value, "0s") == 0) continue;
			fprintf(stderr, "%s %s: this server has no requests that are slow\n", flag, value);
			exit(2);
		}
	}
	// The signals that end the server are for its own thread.
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	beside_start("-burn", beside_burn, burn);
	beside_start("-churn", beside_churn, churn);
	pthread_sigmask(SIG_SETMASK, &before, NULL);

	const char *sched = getenv("SCHED");
	if (sched == NULL || *sched == 0) return;
	struct sched_param param = {0};
	char *end = NULL;
	if (strncmp(sched, "fifo:", 5) == 0 && sched[5] != 0) param.sched_priority = (int)strtol(sched + 5, &end, 10);
	if (end == NULL || *end != 0 || param.sched_priority < 1 || param.sched_priority > 99) {
		fprintf(stderr, "SCHED=%s: fifo:1 to fifo:99 is allowed\n", sched);
		exit(2);
	}
	if (sched_setscheduler(0, SCHED_FIFO, &param) < 0) {
		fprintf(stderr, "SCHED=%s: %s (CAP_SYS_NICE is needed)\n", sched, strerror(errno));
		exit(1);
	}
}
