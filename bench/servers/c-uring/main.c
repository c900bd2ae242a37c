// c-uring: the echo server as a C programmer writes it for io_uring, one thread,
// one ring, with liburing. It is what the Go servers' use of io_uring is measured
// against, not a library. It needs Linux 6.0; DEFER_TASKRUN is used from 6.1 on.
//
// One multishot accept; on each connection one multishot receive, which takes its
// buffers from a ring that all share; and at most one send in flight, straight from
// those buffers, since two might overtake each other inside the stream. What arrives
// meanwhile waits in a list of buffers and leaves with one gathering send. A buffer
// goes back when it has been sent. All that a batch of completions asks for is
// submitted, and the next batch waited for, with one system call.
//
// A connection that does not take its answers holds HELD_MAX buffers and somewhat
// more (what was under way when it was stopped), and is not received from until it
// has taken all. Enough of those together can hold every buffer; then the others
// wait for them. c-epoll has memory for each connection instead.
//
// C_URING_BUFFERS and C_URING_BUFFER_SIZE set the number of buffers, a power of two,
// and their size in bytes. With SPIN=1 it never sleeps, with SPIN=N when it has looked
// so often in vain.
#define _GNU_SOURCE
#if !__has_include(<liburing.h>)
#error liburing.h is missing (Debian: liburing-dev)
#else
#include <liburing.h>
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../c-beside/beside.h"

// What headers of old may not have.
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif

enum {
	SQ_SIZE = 1024,
	CQ_SIZE = 8192,
	GROUP = 1,     // The buffer group's id.
	HELD_MAX = 16, // Buffers that one connection may hold unsent; also what one send gathers.
};

// What a completion belongs to: the low bits of its user_data, above them the
// connection's address.
enum { RECV, SEND, ACCEPT, CANCEL, KINDS = 3 };

// conn is one connection. It goes when nothing of it is in flight any more.
struct conn {
	int fd;
	bool receiving; // The receive is in flight.
	bool starved;   // It found no buffer, and is in the list of those that wait for some.
	bool sending;   // The send is in flight.
	bool ended;     // The client sends no more.
	bool broken;    // Nothing can be sent any more.
	int first, last; // The buffers yet to be sent, in order; -1: none.
	unsigned held;   // Their number.
	unsigned limit;  // Above it the receive is cancelled.
	unsigned off;    // What has been sent of the first one.
	struct conn *next; // In the list of the starved.
};

// gather is what one sendmsg refers to. The kernel has read it when the submission returns.
struct gather {
	struct msghdr msg;
	struct iovec iov[HELD_MAX];
};

static struct io_uring ring;
static struct gather gathers[SQ_SIZE];
static unsigned gathered; // Of gathers, used since the last submission.

static struct io_uring_buf_ring *buf_ring;
static unsigned buffers = 512, buffer_size = 16 << 10, held_max;
static unsigned buffers_free; // As far as completions tell: the kernel may have taken more.
static int buffers_back;      // Given back, and not yet published.
static char *memory;
static struct { int next; unsigned len; } *slots; // By buffer id: its place in a connection's list.

static struct conn *starved_first, **starved_last = &starved_first;
static int lfd, conns;
static bool accepting;

static void on_signal(int sig) {
	(void)sig;
	_exit(0);
}

static void fail(const char *what, int err) {
	fprintf(stderr, "%s: %s\n", what, strerror(err));
	exit(1);
}

static unsigned setting(const char *name, unsigned otherwise, unsigned max) {
	const char *text = getenv(name);
	if (text == NULL || *text == 0) return otherwise;
	char *end;
	unsigned long n = strtoul(text, &end, 10);
	if (*end != 0 || n < 1 || n > max) {
		fprintf(stderr, "%s=%s: not a number from 1 to %u\n", name, text, max);
		exit(2);
	}
	return (unsigned)n;
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
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0) fail("socket", errno);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); // Those accepted inherit it.
	if (bind(fd, (struct sockaddr *)&sa, sizeof sa) < 0) fail("bind", errno);
	if (listen(fd, 65535) < 0) fail("listen", errno); // The kernel cuts it to somaxconn.
	return fd;
}

// open_ring opens the ring: with DEFER_TASKRUN if the kernel has it, or else without.
static void open_ring(void) {
	const unsigned common = IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL |
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_TASKRUN_FLAG;
	const unsigned ways[] = {common | IORING_SETUP_DEFER_TASKRUN, common | IORING_SETUP_COOP_TASKRUN};
	int err = -EINVAL;
	for (size_t i = 0; i < sizeof ways / sizeof *ways && err == -EINVAL; i++) {
		struct io_uring_params p = {.flags = ways[i], .cq_entries = CQ_SIZE};
		err = io_uring_queue_init_params(SQ_SIZE, &ring, &p);
	}
	if (err == -EINVAL) fail("io_uring (older than Linux 6.0?)", EINVAL);
	if (err < 0) fail("io_uring", -err);
	io_uring_register_ring_fd(&ring); // Cheaper calls; without, all works as well.
}

// give_back puts a buffer at the end of the ring. The kernel sees it when the batch is done.
static void give_back(int id) {
	io_uring_buf_ring_add(buf_ring, memory + (size_t)id * buffer_size, buffer_size, (unsigned short)id,
		io_uring_buf_ring_mask(buffers), buffers_back++);
	buffers_free++;
}

static void publish(void) {
	if (buffers_back == 0) return;
	io_uring_buf_ring_advance(buf_ring, buffers_back);
	buffers_back = 0;
}

static void *map(size_t size) {
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED) fail("mmap", errno);
	return p;
}

static void open_buffers(void) {
	if ((buffers & (buffers - 1)) != 0) {
		fprintf(stderr, "C_URING_BUFFERS=%u: not a power of two\n", buffers);
		exit(2);
	}
	held_max = buffers / 4 < HELD_MAX ? buffers / 4 : HELD_MAX;
	if (held_max == 0) held_max = 1;
	buf_ring = map(buffers * sizeof(struct io_uring_buf));
	memory = map((size_t)buffers * buffer_size);
	slots = calloc(buffers, sizeof *slots);
	if (slots == NULL) fail("calloc", ENOMEM);
	struct io_uring_buf_reg reg = {
		.ring_addr = (unsigned long)buf_ring, .ring_entries = buffers, .bgid = GROUP,
	};
	int err = io_uring_register_buf_ring(&ring, &reg, 0);
	if (err < 0) fail("io_uring_register_buf_ring", -err);
	io_uring_buf_ring_init(buf_ring);
	for (unsigned i = 0; i < buffers; i++) give_back((int)i);
	publish();
}

static void flush(void) {
	int err = io_uring_submit(&ring);
	if (err >= 0) gathered = 0;
	else if (err != -EINTR) fail("io_uring_submit", -err);
}

static struct io_uring_sqe *next_sqe(void) {
	struct io_uring_sqe *sqe;
	while ((sqe = io_uring_get_sqe(&ring)) == NULL) {
		publish();
		flush();
	}
	return sqe;
}

static void tag(struct io_uring_sqe *sqe, struct conn *c, unsigned kind) {
	io_uring_sqe_set_data64(sqe, (unsigned long)c | kind);
}

static void arm_accept(void) {
	struct io_uring_sqe *sqe = next_sqe();
	io_uring_prep_multishot_accept(sqe, lfd, NULL, NULL, SOCK_CLOEXEC);
	tag(sqe, NULL, ACCEPT);
	accepting = true;
}

// arm_recv starts the receive. how is IORING_RECVSEND_POLL_FIRST where no input is
// likely yet: the kernel then does not try to receive before it waits.
static void arm_recv(struct conn *c, unsigned how) {
	struct io_uring_sqe *sqe = next_sqe();
	io_uring_prep_recv_multishot(sqe, c->fd, NULL, 0, 0);
	sqe->ioprio |= how;
	sqe->flags |= IOSQE_BUFFER_SELECT;
	sqe->buf_group = GROUP;
	tag(sqe, c, RECV);
	c->receiving = true;
	c->limit = held_max;
}

// pause_recv stops the receive of a connection that does not take its answers. What
// was under way still comes; if more does, the cancellation came at a bad time and
// is repeated.
static void pause_recv(struct conn *c) {
	struct io_uring_sqe *sqe = next_sqe();
	io_uring_prep_cancel64(sqe, (unsigned long)c | RECV, 0);
	sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
	tag(sqe, NULL, CANCEL);
	c->limit *= 4;
}

// send_held sends what the connection holds.
static void send_held(struct conn *c) {
	struct io_uring_sqe *sqe = next_sqe(); // Submits when the queue is full, so that gathers are free again.
	char *start = memory + (size_t)c->first * buffer_size + c->off;
	unsigned len = slots[c->first].len - c->off;
	// MSG_WAITALL: the kernel itself goes on where the socket takes a part only.
	if (c->first == c->last) {
		io_uring_prep_send(sqe, c->fd, start, len, MSG_NOSIGNAL | MSG_WAITALL);
	} else {
		struct gather *g = &gathers[gathered++];
		g->iov[0] = (struct iovec){start, len};
		size_t n = 1;
		for (int id = slots[c->first].next; id >= 0 && n < HELD_MAX; id = slots[id].next)
			g->iov[n++] = (struct iovec){memory + (size_t)id * buffer_size, slots[id].len};
		g->msg = (struct msghdr){.msg_iov = g->iov, .msg_iovlen = n};
		io_uring_prep_sendmsg(sqe, c->fd, &g->msg, MSG_NOSIGNAL | MSG_WAITALL);
	}
	tag(sqe, c, SEND);
	c->sending = true;
}

static void hold(struct conn *c, int id, unsigned len) {
	slots[id].len = len;
	slots[id].next = -1;
	if (c->first < 0) {
		c->first = id;
	} else {
		slots[c->last].next = id;
	}
	c->last = id;
	c->held++;
}

static void drop_first(struct conn *c) {
	int id = c->first;
	c->first = slots[id].next;
	c->off = 0;
	c->held--;
	give_back(id);
}

// advance does what the connection's state asks for now.
static void advance(struct conn *c) {
	if (c->sending) return;
	if (c->broken) {
		while (c->first >= 0) drop_first(c);
	} else if (c->first >= 0) {
		send_held(c);
		return;
	} else if (!c->receiving && !c->starved && !c->ended) {
		arm_recv(c, 0); // It was paused.
	}
	if (c->receiving || c->starved || !(c->ended || c->broken)) return;
	close(c->fd);
	free(c);
	conns--;
	if (!accepting) arm_accept();
}

static void on_accept(int res, unsigned flags) {
	if (!(flags & IORING_CQE_F_MORE)) accepting = false;
	if (res < 0) {
		// With no descriptor left the next try is when a connection has gone.
		bool full = res == -EMFILE || res == -ENFILE || res == -ENOBUFS || res == -ENOMEM;
		if (res != -ECONNABORTED && res != -EINTR) fprintf(stderr, "accept: %s\n", strerror(-res));
		if (full && conns == 0) exit(1);
		if (!accepting && !full) arm_accept();
		return;
	}
	struct conn *c = calloc(1, sizeof *c);
	if (c == NULL) fail("calloc", ENOMEM);
	c->fd = res;
	c->first = c->last = -1;
	conns++;
	arm_recv(c, IORING_RECVSEND_POLL_FIRST);
	if (!accepting) arm_accept();
}

static void on_recv(struct conn *c, int res, unsigned flags) {
	if (flags & IORING_CQE_F_BUFFER) {
		int id = (int)(flags >> IORING_CQE_BUFFER_SHIFT);
		buffers_free--;
		if (res > 0 && !c->broken) {
			hold(c, id, (unsigned)res);
		} else {
			give_back(id);
		}
	}
	if (flags & IORING_CQE_F_MORE) {
		if (c->held > c->limit) pause_recv(c);
	} else {
		c->receiving = false;
		if (res == -ENOBUFS) {
			c->starved = true;
			c->next = NULL;
			*starved_last = c;
			starved_last = &c->next;
		} else if (res == 0) {
			c->ended = true;
		} else if (res < 0 && res != -ECANCELED && res != -EINTR && res != -EAGAIN) {
			c->ended = c->broken = true;
		} else if (c->held <= held_max && !c->broken) {
			// Ended for the kernel's reasons, fairness or a full completion queue, or it
			// was to be paused and all has been sent meanwhile.
			arm_recv(c, 0);
		}
	}
	advance(c);
}

static void on_send(struct conn *c, int res) {
	c->sending = false;
	if (res <= 0 && res != -EINTR && res != -EAGAIN) {
		c->broken = true;
		if (c->receiving) shutdown(c->fd, SHUT_RDWR); // Ends the receive.
	}
	for (unsigned n = res > 0 ? (unsigned)res : 0; n > 0;) {
		unsigned left = slots[c->first].len - c->off;
		if (n < left) {
			c->off += n; // It took a part: the rest comes first in the next send.
			break;
		}
		n -= left;
		drop_first(c);
	}
	advance(c);
}

// feed_starved starts again what found no buffer, as many as have a chance to find one.
static void feed_starved(void) {
	for (unsigned n = buffers_free; n > 0 && starved_first != NULL; n--) {
		struct conn *c = starved_first;
		starved_first = c->next;
		if (starved_first == NULL) starved_last = &starved_first;
		c->starved = false;
		if (!c->broken && c->held <= held_max) arm_recv(c, 0);
		else advance(c);
	}
}

// look submits, and looks at the ring until there are completions; with looks above 1, so often before it sleeps. Deferred work
// makes completions only when its owner enters.
static int look(long looks) {
	int err = io_uring_submit(&ring);
	for (long vain = 0; err >= 0 && io_uring_cq_ready(&ring) == 0; vain++) {
		if (looks > 1 && vain >= looks) return io_uring_submit_and_wait(&ring, 1);
		if (*(volatile unsigned *)ring.sq.kflags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) {
			int got = io_uring_get_events(&ring);
			if (got < 0) err = got;
		}
#if defined(__x86_64__)
		__builtin_ia32_pause();
#endif
	}
	return err;
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
	buffers = setting("C_URING_BUFFERS", buffers, 32768);
	buffer_size = setting("C_URING_BUFFER_SIZE", buffer_size, 1 << 20);
	struct sigaction sa = {.sa_handler = on_signal};
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);

	// The Go runtime raises the soft limit of its programs to the hard one too.
	struct rlimit files;
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	open_ring();
	open_buffers();
	lfd = listen_on(addr);
	arm_accept();
	beside(argc, argv);
	printf("listening on %s\n", addr);
	fflush(stdout);

	const char *spin = getenv("SPIN");
	long looks = spin != NULL ? atol(spin) : 0;
	for (;;) {
		int err = looks > 0 ? look(looks) : io_uring_submit_and_wait(&ring, 1);
		if (err >= 0) gathered = 0;
		else if (err != -EINTR) fail("io_uring_submit_and_wait", -err);
		struct io_uring_cqe *cqe;
		unsigned head, n = 0;
		io_uring_for_each_cqe(&ring, head, cqe) {
			n++;
			struct conn *c = (struct conn *)(unsigned long)(cqe->user_data & ~(__u64)KINDS);
			switch (cqe->user_data & KINDS) {
			case RECV: on_recv(c, cqe->res, cqe->flags); break;
			case SEND: on_send(c, cqe->res); break;
			case ACCEPT: on_accept(cqe->res, cqe->flags); break;
			}
		}
		io_uring_cq_advance(&ring, n);
		feed_starved();
		publish();
	}
}
