/*
 * image.h - row images as block.h describes them.
 */
#ifndef CUTOVER_IMAGE_H
#define CUTOVER_IMAGE_H

#include "access/htup.h"
#include "utils/rel.h"

#include "tracked.h"

/* Attributes left out of an image, and the image. */
typedef struct CutoverImage
{
	HeapTuple	tuple;			/* nothing out of line, all attributes stored */
	int			nelided;
	int16	   *elided;
} CutoverImage;

/* The whole row; old is the version it replaces (NULL if none may lend its out-of-line values). */
extern void cutover_image_row(CutoverImage *image, const CutoverRelation *entry, Relation rel,
							  HeapTuple tuple, HeapTuple old);

/* The key only; the whole row where old images are whole rows. */
extern HeapTuple cutover_image_old(const CutoverRelation *entry, Relation rel, HeapTuple tuple);

/* Did an update change the bytes of the key? */
extern bool cutover_image_key_changed(const CutoverRelation *entry, Relation rel, HeapTuple old, HeapTuple new);

/* Is the raw size of the row too large for an image? */
extern bool cutover_image_too_large(Relation rel, HeapTuple tuple);

#endif							/* CUTOVER_IMAGE_H */
