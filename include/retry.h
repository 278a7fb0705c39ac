/*
 * retry.h - which errors pass by themselves, and how long to wait.  Pure functions.
 */
#ifndef CUTOVER_RETRY_H
#define CUTOVER_RETRY_H

typedef enum CutoverErrorClass
{
	CUTOVER_ERROR_CONNECTION,	/* lost or not to be had: connect again, for ever */
	CUTOVER_ERROR_TRANSIENT,	/* locks, serialization, resources, shutdown: again, for ever */
	CUTOVER_ERROR_DATA			/* this row or statement will fail again */
} CutoverErrorClass;

/* sqlerrcode as in ErrorData */
extern CutoverErrorClass cutover_retry_classify(int sqlerrcode);

/* Milliseconds before attempt n (from 1): doubling from 100 ms to max_ms, with jitter of a quarter. */
extern int	cutover_retry_delay(int attempt, int max_ms);

#endif							/* CUTOVER_RETRY_H */
