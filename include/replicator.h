/*
 * replicator.h - the worker that moves changes of one target in one direction.
 */
#ifndef CUTOVER_REPLICATOR_H
#define CUTOVER_REPLICATOR_H

/* Entry points of background workers (exported, found by name). */
extern PGDLLEXPORT void cutover_launcher_main(Datum arg);
extern PGDLLEXPORT void cutover_probe_main(Datum arg);
extern PGDLLEXPORT void cutover_replicator_main(Datum arg);
extern PGDLLEXPORT void cutover_copier_main(Datum arg);
extern PGDLLEXPORT void cutover_action_main(Datum arg);
extern PGDLLEXPORT void cutover_shadow_main(Datum arg);

#endif							/* CUTOVER_REPLICATOR_H */
