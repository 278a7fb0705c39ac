#include "postgres.h"
#include "comparer.h"
void cutover_compare_plan_window(Comparer *c) {}
void cutover_compare_window(Comparer *c, const char *since, const char *until, CompareCounts *counts) {}
void cutover_compare_known(Comparer *c, CompareCounts *counts) {}
void cutover_compare_changes(Comparer *c, CompareCounts *counts) {}
