/* capture.c - to be written */
#include "postgres.h"
#include "capture.h"
void cutover_capture_init(void) {}
bool cutover_capture_disabled, cutover_capture_rewrite_is_ours;
