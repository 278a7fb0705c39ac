/*
 * compare_schedule.h - comparisons in the background.
 */
#ifndef CUTOVER_COMPARE_SCHEDULE_H
#define CUTOVER_COMPARE_SCHEDULE_H

/* In the replicator, now and then: see to it that the worker of a schedule lives, and that none does without one. */
extern void cutover_compare_schedule_tend(int32 target_id);

/* The replicator ends because its target does not run: so does the worker. */
extern void cutover_compare_schedule_stop(void);

/* Entry point of the worker. */
extern PGDLLEXPORT void cutover_compare_schedule_main(Datum arg);

#endif							/* CUTOVER_COMPARE_SCHEDULE_H */
