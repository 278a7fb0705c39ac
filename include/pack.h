/*
 * pack.h - a block's bytes as the value of a queue row, and back.
 */
#ifndef CUTOVER_PACK_H
#define CUTOVER_PACK_H

/* Header and body as one bytea in CurrentMemoryContext, compressed where that pays. */
extern struct varlena *cutover_pack(const char *body, Size len);

/*
 * The body of a block: a copy in CurrentMemoryContext, its length in *len.
 * NULL if the bytes are no block; *why then says what is wrong.
 */
extern char *cutover_unpack(struct varlena *value, Size *len, const char **why);

/* How many bytes of changes make a good block. */
extern Size cutover_pack_block_size(void);

#endif							/* CUTOVER_PACK_H */
