// The cold wait: spin without a P, then sleep. Everything is passed as numbers, and nothing is kept.
#ifndef POLLUX_WAIT_H
#define POLLUX_WAIT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>

// The kernel's struct __kernel_timespec, on every architecture.
struct timespec64 {
	int64_t sec, nsec;
};

// What Go has declared too: it compares.
enum {
	POLLUX_EPOLL_EVENT_SIZE = sizeof(struct epoll_event),
	POLLUX_EPOLL_EVENT_EVENTS = offsetof(struct epoll_event, events),
	POLLUX_EPOLL_EVENT_DATA = offsetof(struct epoll_event, data),
	POLLUX_EPOLL_EVENT_DATA_SIZE = sizeof(((struct epoll_event *)0)->data),
	POLLUX_TIMESPEC_SIZE = sizeof(struct timespec64),
	POLLUX_TIMESPEC_SEC = offsetof(struct timespec64, sec),
	POLLUX_TIMESPEC_NSEC = offsetof(struct timespec64, nsec),
};

// Returns the number of events, or -errno.
int pollux_epoll_spin(int epfd, uintptr_t events, int max, int64_t spin, int64_t timeout);

struct pollux_entered {
	int32_t error;  // 0, or an errno
	uint32_t calls; // of io_uring_enter
};

struct pollux_entered pollux_ring_spin(int fd, uint32_t submit, uint32_t flags, uintptr_t arg, size_t size, uintptr_t ts,
                                       uintptr_t tail, uint32_t head, uintptr_t sq_flags, int64_t spin);

#endif
