/*
 * Queue: the owner pushes and pops while two thieves steal. Each item is taken once, in order by each taker, and the
 * indexes wrap around.
 *
 * Indexes run modulo MOD and start so that they wrap. Less than MOD items pass through, as less than 2^32 do while a
 * thief stands still.
 *
 * BUG=1  a thief stores the new head instead of comparing and swapping
 * BUG=2  a thief claims first and reads then: the owner has the slot back in between
 * BUG=3  a slot is published before it is filled
 * BUG=4  as many items as there are indexes pass by a thief that stands still: the weakness that is named at the type
 */
#ifndef BUG
#define BUG 0
#endif
#ifndef CAPACITY
#define CAPACITY 2
#endif

#if BUG == 4
#define MOD   (2 * CAPACITY)
#define ITEMS (2 * CAPACITY + 1)
#else
#define MOD   (4 * CAPACITY)
#define ITEMS (CAPACITY + 2)
#endif
#define START (MOD - 1)

byte slot[CAPACITY];
byte head = START;
byte tail = START;
byte taken[ITEMS + 1];
bool pushed;

#define ahead(a, b) ((a + MOD - b) % MOD)

inline take(item) {
	assert(item > last);
	last = item;
	taken[item]++;
	assert(taken[item] == 1)
}

inline readSlots() {
	do
	:: i < n -> got[i] = slot[(h + i) % CAPACITY]; i++
	:: else -> i = 0; break
	od
}

proctype thief() {
	byte h, n, i, last; byte got[CAPACITY]; bool ok;
	do
	:: pushed && head == tail -> break
	:: head != tail ->
		h = head;
		atomic { n = ahead(tail, h); if :: n > CAPACITY -> n = 0 :: else -> n = n - n / 2 fi };
#if BUG != 2
		readSlots();
#endif
		atomic {	/* the claim */
#if BUG == 1
			ok = true;
#else
			ok = (head == h);
#endif
			if :: ok -> head = (h + n) % MOD :: else fi
		};
#if BUG == 2
		readSlots();
#endif
		skip;
		d_step {
			do
			:: ok && i < n -> take(got[i]); i++
			:: else -> break
			od;
			/* Nothing of this is looked at again: states that differ in it are the same. */
			i = 0;
			do
			:: i < CAPACITY -> got[i] = 0; i++
			:: else -> break
			od;
			h = 0; n = 0; i = 0; ok = false
		}
	od
}

proctype owner() {
	byte next = 1, h, item, last; bool ok;
	do
	:: next <= ITEMS && ahead(tail, head) < CAPACITY ->
#if BUG == 3
		tail = (tail + 1) % MOD;
		slot[(tail + MOD - 1) % MOD % CAPACITY] = next; next++
#else
		slot[tail % CAPACITY] = next; next++;
		tail = (tail + 1) % MOD
#endif
	:: head != tail ->
		h = head;
		if
		:: h != tail ->
			item = slot[h % CAPACITY];
			atomic { ok = (head == h); if :: ok -> head = (h + 1) % MOD :: else fi };
			d_step { if :: ok -> take(item) :: else fi; h = 0; item = 0; ok = false }
		:: else -> h = 0
		fi
	:: next > ITEMS && head == tail -> break
	od;
	pushed = true
}

init {
	byte i = 1;
	atomic { run owner(); run thief(); run thief() };
	(timeout);
	do
	:: i <= ITEMS -> assert(taken[i] == 1); i++
	:: else -> break
	od
}
