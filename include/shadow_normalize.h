/*
 * shadow_normalize.h - the text of a statement without its constants.
 */
#ifndef CUTOVER_SHADOW_NORMALIZE_H
#define CUTOVER_SHADOW_NORMALIZE_H

#if PG_VERSION_NUM >= 160000
#include "nodes/queryjumble.h"
#else
#include "utils/queryjumble.h"
#endif

/* In the current context; white space is put together. */
extern char *cutover_shadow_normalize(const char *text, JumbleState *jumble);

#endif							/* CUTOVER_SHADOW_NORMALIZE_H */
