// hand.h: HAND=1 has another thread answer, to which the loop gives what it has received over a queue with a lock and a
// condition, as internal/server's Handover does with a goroutine and a channel. It is timed from before the lock to after the
// thread has taken it out. In C both are threads, which the kernel alone schedules: what a loop that stays on its own thread can
// have at best.
#pragma once
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

enum {
	HAND_QUEUE = 64 << 10,
	HAND_STEPS = 128, // of the histogram for each power of two: 0.8 %
};

// hand_item is bytes to answer, or without any a connection whose last answer is given.
struct hand_item {
	struct conn *conn;
	char *bytes;
	size_t size;
	uint64_t at;
};

static struct {
	pthread_mutex_t lock; // of the queue
	pthread_cond_t filled, emptied;
	struct hand_item items[HAND_QUEUE];
	size_t head, tail; // count up for ever
	int ended;

	pthread_t thread;
	uint64_t counts[64 * HAND_STEPS], count, most; // the thread's, until it has ended
} hand = {.lock = PTHREAD_MUTEX_INITIALIZER, .filled = PTHREAD_COND_INITIALIZER, .emptied = PTHREAD_COND_INITIALIZER};

static uint64_t hand_now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void hand_record(uint64_t nanos) {
	int power = 0;
	while (nanos >> power >= 2 * HAND_STEPS) power++;
	hand.counts[(size_t)power * HAND_STEPS + (nanos >> power)]++;
	hand.count++;
	if (nanos > hand.most) hand.most = nanos;
}

// hand_quantile is the least value that so many of a thousand are not above, rounded up as the histogram has it.
static uint64_t hand_quantile(unsigned of_1000) {
	uint64_t need = (hand.count * of_1000 + 999) / 1000, seen = 0;
	for (size_t i = 0; i < sizeof hand.counts / sizeof *hand.counts; i++) {
		seen += hand.counts[i];
		if (seen < need || seen == 0) continue;
		size_t power = i < 2 * HAND_STEPS ? 0 : i / HAND_STEPS - 1;
		uint64_t value = (((uint64_t)(i - power * HAND_STEPS) + 1) << power) - 1;
		return value < hand.most ? value : hand.most;
	}
	return 0;
}

static void hand_push(struct hand_item item) {
	item.at = hand_now();
	pthread_mutex_lock(&hand.lock);
	while (hand.tail - hand.head == HAND_QUEUE) pthread_cond_wait(&hand.emptied, &hand.lock);
	hand.items[hand.tail++ % HAND_QUEUE] = item;
	pthread_cond_signal(&hand.filled);
	pthread_mutex_unlock(&hand.lock);
}

static void hand_answer(int fd, const char *bytes, size_t size) {
	while (size > 0) {
		ssize_t n = send(fd, bytes, size, MSG_NOSIGNAL);
		if (n >= 0) {
			bytes += n;
			size -= (size_t)n;
		} else if (errno == EAGAIN) {
			struct pollfd p = {.fd = fd, .events = POLLOUT};
			poll(&p, 1, -1);
		} else if (errno != EINTR) {
			return; // The loop finds the end.
		}
	}
}

static void drop(struct conn *c);
static int hand_fd(const struct conn *c);

static void *hand_run(void *unused) {
	(void)unused;
	for (;;) {
		pthread_mutex_lock(&hand.lock);
		while (hand.head == hand.tail && !hand.ended) pthread_cond_wait(&hand.filled, &hand.lock);
		if (hand.head == hand.tail) break;
		struct hand_item item = hand.items[hand.head++ % HAND_QUEUE];
		pthread_cond_signal(&hand.emptied);
		pthread_mutex_unlock(&hand.lock);
		if (item.bytes == NULL) {
			drop(item.conn);
			continue;
		}
		hand_record(hand_now() - item.at);
		hand_answer(hand_fd(item.conn), item.bytes, item.size);
		free(item.bytes);
	}
	pthread_mutex_unlock(&hand.lock);
	return NULL;
}

static void hand_start(void) {
	// The signals that end the server are for its own thread.
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int err = pthread_create(&hand.thread, NULL, hand_run, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (err != 0) {
		fprintf(stderr, "HAND=1: %s\n", strerror(err));
		exit(1);
	}
}

// hand_report ends the thread and prints what was measured, as internal/server's Report does.
static void hand_report(void) {
	pthread_mutex_lock(&hand.lock);
	hand.ended = 1;
	pthread_cond_signal(&hand.filled);
	pthread_mutex_unlock(&hand.lock);
	pthread_join(hand.thread, NULL);
	printf("handover %llu %llu %llu %llu %llu\n", (unsigned long long)hand.count, (unsigned long long)hand_quantile(500),
		(unsigned long long)hand_quantile(990), (unsigned long long)hand_quantile(999), (unsigned long long)hand.most);
}
