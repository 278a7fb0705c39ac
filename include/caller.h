/*
 * caller.h - what the present call knows of its caller's session.
 */
#ifndef CUTOVER_CALLER_H
#define CUTOVER_CALLER_H

/* The search_path that the caller of the running public function has, or NULL. */
extern const char *cutover_caller_path;

#endif							/* CUTOVER_CALLER_H */
