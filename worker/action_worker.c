/* action_worker.c - to be written */
#include "postgres.h"
