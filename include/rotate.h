/*
 * rotate.h - reuse of queue segments.
 */
#ifndef CUTOVER_ROTATE_H
#define CUTOVER_ROTATE_H

#include "session.h"

/*
 * If the present segment is full enough and the next one can be emptied: empty
 * it and write there from now on.  Never waits for a lock.  Uses a transaction
 * of its own.  Returns true if it rotated.
 */
extern bool cutover_rotate(CutoverSession *session);

#endif							/* CUTOVER_ROTATE_H */
