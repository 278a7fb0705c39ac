/* copier.c - to be written */
#include "postgres.h"
