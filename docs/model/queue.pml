/*
 * queue.pml - windows, markers and the lease: what reaches new, and what dies meanwhile.
 *
 * Two instances of old: 0 is the original; 1 comes to be as a copy of its log up
 * to some point (a standby that is promoted, perhaps without the tail, or a clone
 * that somebody starts beside it).  Both may commit, crash, and try to replicate to the one new.
 *
 * Checked: new holds what one instance's history says, no transaction twice or
 * out of order; a crash alone never takes back what new has.
 *
 * Each of these leaves a step out, and must be found:
 *   NO_FLUSH     the marker need not be durable before new commits
 *   NO_COMPARE   markers and new's progress are not compared after a restart
 *   NO_TOKEN     a connection that lost the lease may still commit
 *   NO_TOGETHER  rows and progress are two transactions
 *   NO_NAME      windows of the same number are told apart by their snapshot's text alone
 */
#define WRITES	3				/* transactions in all */
#define RECORDS	5				/* of a log */
#define CRASHES	1
#define PAUSES	2				/* times without a renewal of the lease */
#define MARK	100				/* a record that is a marker; what is below is a transaction */
#define NOBODY	2

/* a log: all that an instance is */
typedef Log {
	byte rec[RECORDS];
	byte k[RECORDS];			/* of a marker: its number, and how many transactions it saw */
	byte saw[RECORDS];
	byte name[RECORDS];			/* drawn at random: no two markers have the same */
	byte size;
	byte flushed;
};

Log old[2];
bool exists[2];
byte next = 0;					/* transactions so far: each has its own number */
bool copied = false;
byte crashes = 0;
byte pauses = 0;
byte gone = 0;					/* the original: 1 = is gone, 2 = has come back */

/* new: rows as the history they come from, and progress */
byte rows[WRITES];
byte nrows = 0;
byte new_k = 0;
byte new_saw = 0;
byte new_name = 0;
byte names = 0;
byte holder = NOBODY;			/* of the lease; kept when it has run out */
bool expired = true;
byte token = NOBODY;			/* whose connection may record progress */

/* a replicator, and a COMMIT of it that is on its way */
bool session[2];
bool ready[2];
byte sent_k[2];
byte sent_saw[2];
byte sent_name[2];
byte sent_rows[2 * WRITES];
byte sent_from[2];
bool sent[2];
byte known_k[2];				/* new's progress, as far as this replicator knows */
byte known_saw[2];
bool marked[2];					/* the marker of a window is written, nothing sent */
byte commits[2];				/* transactions in an instance's log */

#ifdef NO_NAME
#define NAME(i)	old[i].saw[old[i].size]
#else
#define NAME(i)	names + 1; names++
#endif

/* what was sent and has no consequences any more */
#define FORGET(i) \
	sent_k[i] = 0; sent_saw[i] = 0; sent_name[i] = 0; sent_from[i] = 0; \
	sent_rows[i * WRITES] = 0; sent_rows[i * WRITES + 1] = 0; sent_rows[i * WRITES + 2] = 0

/* how many transactions instance i has, and its last marker */
#define SCAN(i) \
	seen = 0; mk = 0; msaw = 0; mname = 0; n = 0; \
	do \
	:: n < old[i].size && old[i].rec[n] == MARK -> mk = old[i].k[n]; msaw = old[i].saw[n]; mname = old[i].name[n]; n++ \
	:: n < old[i].size && old[i].rec[n] != MARK -> seen++; n++ \
	:: n >= old[i].size -> break \
	od; \
	n = 0

/* transactions from .. to-1 of instance i, as they go to new */
#define SEND(i, from, to) \
	seen = 0; n = 0; \
	do \
	:: n < old[i].size && old[i].rec[n] == MARK -> n++ \
	:: n < old[i].size && old[i].rec[n] != MARK -> \
		if \
		:: seen >= from && seen < to -> sent_rows[i * WRITES + seen] = old[i].rec[n] \
		:: else \
		fi; \
		seen++; n++ \
	:: n >= old[i].size -> break \
	od; \
	sent_from[i] = from; n = 0

/* is new what instance i says it is? */
#define CHECK(i) \
	seen = 0; n = 0; \
	do \
	:: n < old[i].size && old[i].rec[n] == MARK -> n++ \
	:: n < old[i].size && old[i].rec[n] != MARK -> \
		assert(seen >= new_saw || seen >= nrows || rows[seen] == old[i].rec[n]); \
		seen++; n++ \
	:: n >= old[i].size -> break \
	od; \
	assert(nrows == new_saw && seen >= new_saw); \
	n = 0

proctype Replicator(byte i)
{
	byte seen, mk, msaw, mname, n;

	do
	:: atomic {		/* connect */
			exists[i] && !session[i] ->
			if
			:: holder == i || holder == NOBODY || expired ->
				holder = i; expired = false; token = i;
#ifndef NO_TOKEN
				sent[i] = false;	/* an earlier connection had another token */
				FORGET(i);
#endif
				session[i] = true; ready[i] = false; marked[i] = false;
				SCAN(i);		/* do old and new agree? */
				if
#ifndef NO_COMPARE
				:: new_k > mk || (new_k == mk && new_name != mname) ->
					/* rewound: begin anew from now, all tables are compared and repaired */
					assert(copied);		/* a crash alone never does that */
					if
					:: old[i].size < RECORDS ->
						old[i].rec[old[i].size] = MARK;
						old[i].k[old[i].size] = (new_k > mk -> new_k : mk) + 1;
						old[i].saw[old[i].size] = seen;
						old[i].name[old[i].size] = NAME(i);
						new_name = old[i].name[old[i].size];
						old[i].size++; old[i].flushed = old[i].size;
						new_k = old[i].k[old[i].size - 1]; new_saw = seen; nrows = seen;
						msaw = seen;	/* the macro counts with "seen" */
						SEND(i, 0, msaw);
						n = 0;
						do
						:: n < seen -> rows[n] = sent_rows[i * WRITES + n]; sent_rows[i * WRITES + n] = 0; n++
						:: else -> break
						od;
						n = 0; ready[i] = true;
						known_k[i] = new_k; known_saw[i] = new_saw
					:: else -> session[i] = false
					fi
				:: else -> ready[i] = true; known_k[i] = new_k; known_saw[i] = new_saw
#else
				:: true -> ready[i] = true; known_k[i] = new_k; known_saw[i] = new_saw
#endif
				fi;
				seen = 0; mk = 0; msaw = 0; mname = 0
			:: else
			fi
		}
	:: atomic {		/* a window: its marker ... */
			exists[i] && session[i] && ready[i] && !marked[i] && !sent[i] && commits[i] > known_saw[i] && old[i].size < RECORDS ->
			old[i].rec[old[i].size] = MARK;
			old[i].k[old[i].size] = known_k[i] + 1;
			old[i].saw[old[i].size] = commits[i];
			old[i].name[old[i].size] = NAME(i);
			old[i].size++;
			marked[i] = true
		}
	:: atomic {		/* ... and then its rows */
			exists[i] && session[i] && ready[i] && marked[i] ->
#ifndef NO_FLUSH
			old[i].flushed = old[i].size;
#endif
			SCAN(i);
			SEND(i, known_saw[i], msaw);
			sent_k[i] = mk; sent_saw[i] = msaw; sent_name[i] = mname; sent[i] = true; marked[i] = false;
			seen = 0; mk = 0; msaw = 0; mname = 0
		}
	od
}

/* the network and new: what was sent arrives, even if its sender is dead */
proctype New()
{
	byte i, n, seen;

	do
	:: atomic {
			if
			:: sent[0] -> i = 0
			:: sent[1] -> i = 1
			fi;
			sent[i] = false;
#ifndef NO_TOKEN
			if
			:: token != i -> session[i] = false; FORGET(i); goto again
			:: else
			fi;
#endif
			if
			:: nrows == sent_from[i] -> skip
			:: nrows != sent_from[i] -> assert(false)		/* the rows of another window are there */
			fi;
			n = sent_from[i];
			do
			:: n < sent_saw[i] -> rows[n] = sent_rows[i * WRITES + n]; sent_rows[i * WRITES + n] = 0; n++
			:: else -> break
			od;
			nrows = sent_saw[i]; n = 0;
#ifdef NO_TOGETHER
		}
		atomic {
#endif
			new_k = sent_k[i]; new_saw = sent_saw[i]; new_name = sent_name[i];
			FORGET(i);
			if
			/* the sender may have crashed, and lost nothing of what it has sent */
			:: token == i && session[i] -> known_k[i] = new_k; known_saw[i] = new_saw; CHECK(i)
			:: else
			fi;
			seen = 0
		}
again:	i = 0
	od
}

proctype World()
{
	byte i, to;

	do
	:: atomic {		/* a transaction commits; whether it is durable comes later */
			next < WRITES ->
			if
			:: exists[0] -> i = 0
			:: exists[1] -> i = 1
			fi;
			if
			:: old[i].size < RECORDS && next < WRITES ->
				next++;
				old[i].rec[old[i].size] = next;
				commits[i]++;
				old[i].size++
			:: else
			fi;
			i = 0
		}
	:: atomic {		/* a crash: the log ends anywhere behind what was flushed */
			crashes < CRASHES -> crashes++;
			if
			:: exists[0] -> i = 0
			:: exists[1] -> i = 1
			fi;
			do
			:: old[i].size > old[i].flushed ->
				old[i].size--;
				if
				:: old[i].rec[old[i].size] != MARK -> commits[i]--
				:: else
				fi;
				old[i].rec[old[i].size] = 0; old[i].k[old[i].size] = 0; old[i].saw[old[i].size] = 0;
				old[i].name[old[i].size] = 0
			:: break
			od;
			old[i].flushed = old[i].size;
			session[i] = false; ready[i] = false; marked[i] = false;
			known_k[i] = 0; known_saw[i] = 0; i = 0
		}
	:: atomic {		/* a copy; with its rows, perhaps without its tail */
			!copied -> copied = true;
			to = 0;
			do
			:: to < old[0].size ->
				old[1].rec[to] = old[0].rec[to]; old[1].k[to] = old[0].k[to]; old[1].saw[to] = old[0].saw[to]; old[1].name[to] = old[0].name[to];
				if
				:: old[0].rec[to] != MARK -> commits[1]++
				:: else
				fi;
				to++
			:: break
			od;
			old[1].size = to; old[1].flushed = to; exists[1] = true; to = 0
		}
	:: atomic {		/* the original is gone, for a while or for good */
			copied && gone == 0 -> gone = 1; exists[0] = false;
			session[0] = false; ready[0] = false; marked[0] = false; known_k[0] = 0; known_saw[0] = 0
		}
	:: atomic { gone == 1 -> gone = 2; exists[0] = true }
	:: atomic { pauses < PAUSES && !expired -> pauses++; expired = true }
	od
}

init
{
	atomic {
		exists[0] = true;
		run Replicator(0);
		run Replicator(1);
		run New();
		run World()
	}
}
