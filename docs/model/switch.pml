/*
 * switch.pml - the switch from old to new and back, with a crash at every step.
 *
 * One transaction at a time writes on each side, as long as that side lets it. Rows
 * are a set of writes; what a client was told is committed is in "promised". The statement
 * that changes the master on new may arrive late, or never, and so may its answer.
 *
 * Checked: whoever commits does so on the one master, and the master has everything that
 * was promised; whatever a crash leaves behind is completed or undone on both sides alike.
 *
 * Each of these leaves a step out, and must be found:
 *   NO_FENCE     the gate does not wait for transactions that have written
 *   NO_DRAIN     the other side need not have everything before it becomes master
 *   NO_DOUBT     old does not write down that new is about to be told
 *   NO_NUMBER    whoever resolves a switch does not use its number up on new
 *   NO_REVERSE   new's changes are captured only once it is master
 */
#define WRITES	5
#define SWITCHES 4
#define CRASHES	4

mtype = { OLD, NEW, NONE, PREPARING, IN_DOUBT };

byte next = 0;					/* writes so far; each is a bit */
byte promised = 0;

/* old, durable */
mtype old_master = OLD;
byte old_epoch = 1;
mtype state = NONE;
mtype to = OLD;
byte number = 0;				/* epoch that the switch is to bring */
byte old_rows = 0;

/* new, durable */
mtype new_master = OLD;
byte new_epoch = 1;
byte new_rows = 0;
bool captured = false;			/* is there a trigger that captures keys? */
byte keys = 0;					/* that it has captured */

/* transactions that write, and what keeps others from it */
bool writes_old = false;
bool writes_new = false;
bool gate_old = false;
bool gate_new = false;

/* the statement on its way to new, and its answer on the way back */
bool sent = false;
mtype sent_master = OLD;
byte sent_epoch = 0;
bool answer = false;

bool switching = false;			/* a process is at it */
bool linked = false;			/* its connection to new, whose transaction holds the gate there */
byte switches = 0;
byte crashes = 0;

#ifdef NO_FENCE
#define IDLE(writes) true
#else
#define IDLE(writes) !writes
#endif
#define OTHER(m) (m == OLD -> NEW : OLD)

/* ---- applications */

active proctype WriterOld()
{
	do
	:: atomic { !writes_old && !gate_old && old_master == OLD && state != IN_DOUBT && next < WRITES -> writes_old = true }
	:: atomic {
			writes_old && next < WRITES ->
			assert(new_master == OLD);
			assert((old_rows & promised) == promised);
			old_rows = old_rows | (1 << next); promised = promised | (1 << next);
			next++; writes_old = false
		}
	:: atomic { writes_old -> writes_old = false }		/* rolled back */
	od
}

active proctype WriterNew()
{
	do
	:: atomic { !writes_new && !gate_new && new_master == NEW && next < WRITES -> writes_new = true }
	:: atomic {
			writes_new && next < WRITES ->
			assert(new_master == NEW);
			assert((new_rows & promised) == promised);
			new_rows = new_rows | (1 << next); promised = promised | (1 << next);
			if
			:: captured -> keys = keys | (1 << next)
			:: else
			fi;
			next++; writes_new = false
		}
	:: atomic { writes_new -> writes_new = false }
	od
}

/* ---- the replicator: in the direction that old's mode says; resolves what nobody is at */

active proctype Replicator()
{
	do
	:: atomic { old_master == OLD && state != IN_DOUBT && new_rows != old_rows -> new_rows = new_rows | old_rows }
	:: atomic { old_master == NEW && keys != 0 -> old_rows = old_rows | (keys & new_rows); keys = 0 }
	:: atomic { state == PREPARING && !switching -> state = NONE; number = 0 }
	:: atomic {
			state == IN_DOUBT && !switching ->
#ifndef NO_NUMBER
			new_epoch = (new_epoch < number -> number : new_epoch);
#endif
			if
			:: new_master == to && new_epoch == number -> old_master = to; old_epoch = number
			:: else -> old_epoch = (old_epoch < new_epoch -> new_epoch : old_epoch)
			fi;
			state = NONE; number = 0;
			if
			:: old_master == OLD -> captured = false
			:: else
			fi;
			assert(old_master == new_master)
		}
	od
}

/* ---- new: the statement arrives, or its connection is lost before */

active proctype New()
{
	do
	:: atomic {
			sent -> sent = false;
			if
			:: new_epoch < sent_epoch ->
				new_master = sent_master; new_epoch = sent_epoch; answer = true
			:: else			/* the number is used up */
			fi;
			gate_new = false; sent_epoch = 0
		}
	:: atomic { sent -> sent = false; gate_new = false; sent_epoch = 0 }
	od
}

/* ---- the switch, either way; "goto dead": it died, "goto undo": it gives up */

#define MAY_DIE \
	if \
	:: !switching -> goto dead \
	:: else \
	fi

active proctype Switch()
{
	do
	:: atomic {
			switches < SWITCHES && state == NONE && !sent ->
			switches++; switching = true; linked = true; answer = false;
			state = PREPARING; to = OTHER(old_master); number = old_epoch + 1
		}
		/* the way back is there before it is needed */
#ifndef NO_REVERSE
		atomic {
			MAY_DIE;
			if
			:: to == NEW -> captured = true; keys = 0
			:: else
			fi
		}
#endif
		/* the gate of the side that is master */
		if
		:: atomic {
				switching && to == NEW && IDLE(writes_old) -> gate_old = true
			}
		:: atomic {
				switching && linked && to == OLD && IDLE(writes_new) -> gate_new = true
			}
		:: switching -> goto undo
		:: !switching -> goto dead
		fi;
		/* the other side has everything */
#ifndef NO_DRAIN
		if
		:: atomic { switching && to == NEW && (new_rows & old_rows) == old_rows }
		:: atomic { switching && to == OLD && keys == 0 }
		:: switching -> goto undo
		:: !switching -> goto dead
		fi;
#endif
#ifndef NO_DOUBT
		atomic { MAY_DIE; state = IN_DOUBT }
#endif
		/* on its way; from here on only new knows */
		atomic {
			MAY_DIE;
			if
			:: !linked -> goto dead
			:: else -> sent = true; sent_master = to; sent_epoch = number
			fi
		}
		if
		:: atomic {
				switching && answer ->
				old_master = to; old_epoch = number; state = NONE; number = 0;
#ifdef NO_REVERSE
				captured = (to == NEW)
#else
				if
				:: to == OLD -> captured = false
				:: else
				fi
#endif
			}
		:: switching && !answer && !sent -> goto dead	/* lost: like a crash, somebody resolves it */
		:: !switching -> goto dead
		fi;
		atomic { gate_old = false; switching = false };
		goto again;
undo:	atomic { MAY_DIE; gate_old = false; gate_new = false; state = NONE; number = 0; switching = false };
		goto again;
		/* the locks of a process die with it; that on new when new notices, or has run the statement */
dead:	atomic {
			gate_old = false; switching = false;
			if
			:: !sent -> gate_new = false
			:: else
			fi
		}
again:	skip
	od
}

/* ---- crashes: of the process that switches, of old, of new */

active proctype Crash()
{
	do
	:: atomic { crashes < CRASHES && switching -> crashes++; switching = false; gate_old = false }
	:: atomic { crashes < CRASHES -> crashes++; switching = false; gate_old = false; writes_old = false }
	:: atomic { crashes < CRASHES -> crashes++; writes_new = false; gate_new = false; linked = false; sent = false; sent_epoch = 0 }
	od
}
