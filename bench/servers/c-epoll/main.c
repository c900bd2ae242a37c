// c-epoll: the echo server as a C programmer writes it, one thread, one epoll set.
// It is the floor that the Go servers are measured against, not a library.
//
// Level-triggered: one epoll_wait, one recv and one send an event. Edge-triggered
// saves nothing here, because a short read would end the event just the same, and
// a full one would need a second recv.
//
// A connection that does not take its answer stops being read until it has: one
// buffer a connection, made only then, bounds the memory.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../c-beside/beside.h"
#include "hand.h"

enum { EVENTS_MAX = 512, BUFFER_SIZE = 64 << 10 };

// conn is one connection. pending is what its socket has not taken yet; NULL, as
// it nearly always is, means that it waits for input.
struct conn {
	int fd;
	char *pending;
	size_t head, tail;
};

static int hand_fd(const struct conn *c) { return c->fd; }

static volatile sig_atomic_t stopped;

static void on_signal(int sig) {
	(void)sig;
	stopped = 1;
}

static void die(const char *what) {
	perror(what);
	exit(1);
}

static int listen_on(const char *addr) {
	char host[64];
	const char *colon = strrchr(addr, ':');
	if (colon == NULL || (size_t)(colon - addr) >= sizeof host) {
		fprintf(stderr, "-addr %s: not host:port\n", addr);
		exit(2);
	}
	memcpy(host, addr, (size_t)(colon - addr));
	host[colon - addr] = 0;
	struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(colon + 1))};
	if (inet_pton(AF_INET, host, &sa.sin_addr) != 1) {
		fprintf(stderr, "-addr %s: not an IPv4 address\n", addr);
		exit(2);
	}
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0) die("socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(fd, (struct sockaddr *)&sa, sizeof sa) < 0) die("bind");
	if (listen(fd, 65535) < 0) die("listen"); // The kernel cuts it to somaxconn.
	return fd;
}

static void accept_all(int epfd, int lfd) {
	for (;;) {
		int one = 1, fd = accept4(lfd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0) {
			if (errno == EINTR || errno == ECONNABORTED) continue;
			if (errno != EAGAIN) perror("accept4");
			return;
		}
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		struct conn *c = calloc(1, sizeof *c);
		if (c == NULL) die("calloc");
		c->fd = fd;
		struct epoll_event ev = {.events = EPOLLIN, .data.ptr = c};
		if (epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) < 0) die("epoll_ctl");
	}
}

static void drop(struct conn *c) {
	close(c->fd); // Takes it out of the epoll set too.
	free(c->pending);
	free(c);
}

static void watch(int epfd, struct conn *c, unsigned events) {
	struct epoll_event ev = {.events = events, .data.ptr = c};
	if (epoll_ctl(epfd, EPOLL_CTL_MOD, c->fd, &ev) < 0) die("epoll_ctl");
}

static void on_readable(int epfd, struct conn *c, char *buf) {
	ssize_t n = recv(c->fd, buf, BUFFER_SIZE, 0);
	if (n <= 0) {
		if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
		drop(c);
		return;
	}
	ssize_t sent = send(c->fd, buf, (size_t)n, MSG_NOSIGNAL);
	if (sent == n) return;
	if (sent < 0) {
		if (errno != EAGAIN && errno != EINTR) {
			drop(c);
			return;
		}
		sent = 0;
	}
	c->head = 0;
	c->tail = (size_t)(n - sent);
	c->pending = malloc(c->tail);
	if (c->pending == NULL) die("malloc");
	memcpy(c->pending, buf + sent, c->tail);
	watch(epfd, c, EPOLLOUT);
}

// on_readable_hand has the other thread answer, and close.
static void on_readable_hand(int epfd, struct conn *c, char *buf) {
	ssize_t n = recv(c->fd, buf, BUFFER_SIZE, 0);
	if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
	struct hand_item item = {.conn = c};
	if (n > 0) {
		item.bytes = malloc((size_t)n);
		if (item.bytes == NULL) die("malloc");
		memcpy(item.bytes, buf, (size_t)n);
		item.size = (size_t)n;
	} else if (epoll_ctl(epfd, EPOLL_CTL_DEL, c->fd, NULL) < 0) {
		die("epoll_ctl");
	}
	hand_push(item);
}

static void on_writable(int epfd, struct conn *c) {
	ssize_t n = send(c->fd, c->pending + c->head, c->tail - c->head, MSG_NOSIGNAL);
	if (n < 0) {
		if (errno != EAGAIN && errno != EINTR) drop(c);
		return;
	}
	c->head += (size_t)n;
	if (c->head < c->tail) return;
	free(c->pending);
	c->pending = NULL;
	watch(epfd, c, EPOLLIN);
}

int main(int argc, char **argv) {
	const char *addr = "127.0.0.1:9000";
	for (int i = 1; i + 1 < argc; i += 2) {
		if (strcmp(argv[i], "-addr") == 0) {
			addr = argv[i + 1];
		} else if (strcmp(argv[i], "-loops") == 0 && strcmp(argv[i + 1], "1") != 0) {
			fprintf(stderr, "-loops %s: this server has one loop\n", argv[i + 1]);
			return 2;
		}
	}
	struct sigaction sa = {.sa_handler = on_signal};
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);

	// The Go runtime raises the soft limit of its programs to the hard one too.
	struct rlimit files;
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	int lfd = listen_on(addr), epfd = epoll_create1(EPOLL_CLOEXEC);
	if (epfd < 0) die("epoll_create1");
	struct epoll_event ev = {.events = EPOLLIN, .data.ptr = NULL}, events[EVENTS_MAX];
	if (epoll_ctl(epfd, EPOLL_CTL_ADD, lfd, &ev) < 0) die("epoll_ctl");
	static char buf[BUFFER_SIZE];
	const char *with_hand = getenv("HAND");
	int handing = with_hand != NULL && strcmp(with_hand, "1") == 0;
	if (handing) hand_start();
	beside(argc, argv);
	printf("listening on %s\n", addr);
	fflush(stdout);

	// SPIN=1: it never sleeps. SPIN=N: it sleeps when it has looked so often in vain.
	const char *spin = getenv("SPIN");
	long looks = spin != NULL ? atol(spin) : 0, vain = 0;
	while (!stopped) {
		int n = epoll_wait(epfd, events, EVENTS_MAX, looks == 1 || vain < looks ? 0 : -1);
		if (n < 0) {
			if (errno == EINTR) continue;
			die("epoll_wait");
		}
		vain = n == 0 ? vain + 1 : 0;
		for (int i = 0; i < n; i++) {
			struct conn *c = events[i].data.ptr;
			if (c == NULL) {
				accept_all(epfd, lfd);
			} else if (c->pending != NULL) {
				on_writable(epfd, c);
			} else if (handing) {
				on_readable_hand(epfd, c, buf);
			} else {
				on_readable(epfd, c, buf);
			}
		}
	}
	if (handing) hand_report();
	return 0;
}
