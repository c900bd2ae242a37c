//go:build cgo

#define _GNU_SOURCE
#include "wait.h"

#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif
#ifndef SYS_io_uring_enter
#define SYS_io_uring_enter 426
#endif

// From linux/io_uring.h, which old systems lack.
enum {
	ENTER_GETEVENTS = 1u << 0,
	ENTER_EXT_ARG = 1u << 3,
	ENTER_REGISTERED_RING = 1u << 4,
	SQ_CQ_OVERFLOW = 1u << 1,
	SQ_TASKRUN = 1u << 2,
};

static int64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

// Tells the CPU that this is a spin: it saves power, gives the sibling thread the core, and lets a hypervisor know.
static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("isb" ::: "memory");
#endif
}

// How often a spin looks between two readings of the clock: by a system call, or at memory.
enum { POLL_ROUND = 8, LOOK_ROUND = 16 };

int pollux_epoll_spin(int epfd, uintptr_t events, int max, int64_t spin, int64_t timeout) {
	if (timeout >= 0 && timeout < spin)
		spin = timeout;
	if (spin > 0) {
		int64_t start = now(), passed;
		do {
			for (int i = 0; i < POLL_ROUND; i++) {
				long n = syscall(SYS_epoll_pwait, epfd, events, max, 0, NULL, 0);
				if (n != 0)
					return n < 0 ? -errno : (int)n;
			}
			passed = now() - start;
		} while (passed < spin);
		if (timeout >= 0)
			timeout = timeout > passed ? timeout - passed : 0;
	}
	struct timespec64 ts = {timeout / 1000000000, timeout % 1000000000};
	long n = syscall(SYS_epoll_pwait2, epfd, events, max, timeout < 0 ? NULL : &ts, NULL, 0);
	return n < 0 ? -errno : (int)n;
}

struct pollux_entered pollux_ring_spin(int fd, uint32_t submit, uint32_t flags, uintptr_t arg, size_t size, uintptr_t ts,
                                       uintptr_t tail, uint32_t head, uintptr_t sq_flags, int64_t spin) {
	struct pollux_entered e = {0, 0};
	struct timespec64 *limit = (struct timespec64 *)ts; // The kernel reads it through arg.
	const uint32_t *cq_tail = (const uint32_t *)tail, *state = (const uint32_t *)sq_flags;
	const uint32_t base = flags & ~(uint32_t)ENTER_EXT_ARG; // of an enter that does not wait
	if (submit > 0) {
		e.calls++;
		long n = syscall(SYS_io_uring_enter, fd, submit, 0, base, NULL, 0);
		if (n < 0) {
			e.error = errno;
			return e;
		}
		submit = (uint32_t)n < submit ? submit - (uint32_t)n : 0;
	}
	int64_t timeout = limit ? limit->sec * 1000000000 + limit->nsec : 0;
	if (limit && timeout < spin)
		spin = timeout;
	int64_t start = now(), passed = 0;
	for (unsigned looks = 1;; looks++) {
		// The kernel publishes a completion by its tail.
		if (__atomic_load_n(cq_tail, __ATOMIC_ACQUIRE) != head)
			return e;
		// Deferred work makes completions only when its owner enters.
		if (__atomic_load_n(state, __ATOMIC_RELAXED) & (SQ_TASKRUN | SQ_CQ_OVERFLOW)) {
			e.calls++;
			if (syscall(SYS_io_uring_enter, fd, 0, 0, base, NULL, 0) < 0) {
				e.error = errno;
				return e;
			}
			if (__atomic_load_n(cq_tail, __ATOMIC_ACQUIRE) != head)
				return e;
		}
		relax();
		if (looks % LOOK_ROUND == 0 && (passed = now() - start) >= spin)
			break;
	}
	if (limit) {
		int64_t left = timeout > passed ? timeout - passed : 0;
		*limit = (struct timespec64){left / 1000000000, left % 1000000000};
	}
	e.calls++;
	if (syscall(SYS_io_uring_enter, fd, submit, 1, flags, arg, size) < 0)
		e.error = errno;
	return e;
}
