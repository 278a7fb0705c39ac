/*
 * full_disk.c - a disk that is full as long as a file exists.
 *
 * LD_PRELOAD makes a server use these instead of the C library's: what would
 * make a file of a database (below base/) longer fails with ENOSPC while the
 * file named in FULL_DISK is there, and no space is said to be left.  What
 * only overwrites goes on, as do WAL and temporary files.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#undef _FILE_OFFSET_BITS
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name, type) static type real; if (real == NULL) real = (type) dlsym(RTLD_NEXT, name)

typedef ssize_t (*pwrite_fn) (int, const void *, size_t, off_t);
typedef ssize_t (*pwritev_fn) (int, const struct iovec *, int, off_t);
typedef int (*fallocate_fn) (int, off_t, off_t);
typedef int (*statvfs_fn) (const char *, struct statvfs *);

static int
is_full(void)
{
	const char *flag = getenv("FULL_DISK");

	return flag != NULL && access(flag, F_OK) == 0;
}

/*
 * Would a write up to this offset have to make the file longer, and can't?
 */
static int
refused(int fd, off_t end)
{
	char		link[64];
	char		path[4096];
	ssize_t		len;
	struct stat st;

	if (!is_full() || fstat(fd, &st) != 0 || end <= st.st_size)
		return 0;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	len = readlink(link, path, sizeof(path) - 1);
	if (len <= 0)
		return 0;
	path[len] = '\0';
	if (strstr(path, "/base/") == NULL || strstr(path, "/pgsql_tmp") != NULL)
		return 0;
	errno = ENOSPC;
	return 1;
}

static off_t
total(const struct iovec *iov, int n)
{
	off_t		sum = 0;

	for (int i = 0; i < n; i++)
		sum += iov[i].iov_len;
	return sum;
}

ssize_t
pwrite(int fd, const void *buf, size_t len, off_t offset)
{
	REAL("pwrite", pwrite_fn);
	return refused(fd, offset + len) ? -1 : real(fd, buf, len, offset);
}

ssize_t
pwrite64(int fd, const void *buf, size_t len, off_t offset)
{
	return pwrite(fd, buf, len, offset);
}

ssize_t
pwritev(int fd, const struct iovec *iov, int n, off_t offset)
{
	REAL("pwritev", pwritev_fn);
	return refused(fd, offset + total(iov, n)) ? -1 : real(fd, iov, n, offset);
}

ssize_t
pwritev64(int fd, const struct iovec *iov, int n, off_t offset)
{
	return pwritev(fd, iov, n, offset);
}

int
posix_fallocate(int fd, off_t offset, off_t len)
{
	REAL("posix_fallocate", fallocate_fn);
	return refused(fd, offset + len) ? ENOSPC : real(fd, offset, len);
}

int
posix_fallocate64(int fd, off_t offset, off_t len)
{
	return posix_fallocate(fd, offset, len);
}

int
statvfs(const char *path, struct statvfs *buf)
{
	int			rc;
	REAL("statvfs", statvfs_fn);

	rc = real(path, buf);
	if (rc == 0 && is_full())
		buf->f_bavail = 0;
	return rc;
}

int
statvfs64(const char *path, struct statvfs64 *buf)
{
	return statvfs(path, (struct statvfs *) buf);
}
