package sys

import "golang.org/x/sys/unix"

// IsSocket tells whether path names a socket, without following a symbolic link.
func IsSocket(path string) (bool, Errno) {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpLstat, -1); errno != 0 {
			return false, errno
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return false, err.(Errno)
	}
	return st.Mode&unix.S_IFMT == unix.S_IFSOCK, 0
}

// Unlink removes the name path.
func Unlink(path string) Errno {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpUnlink, -1); errno != 0 {
			return errno
		}
	}
	if err := unix.Unlink(path); err != nil {
		return err.(Errno)
	}
	return 0
}

// Chmod sets the permission bits of path.
func Chmod(path string, mode uint32) Errno {
	if h := hook.Load(); h != nil {
		if errno := fault(h, OpChmod, -1); errno != 0 {
			return errno
		}
	}
	if err := unix.Chmod(path, mode); err != nil {
		return err.(Errno)
	}
	return 0
}

// SocketInode returns an identity of the file that path names, to see later whether it is still the same one.
func SocketInode(path string) (dev, ino uint64, errno Errno) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, 0, err.(Errno)
	}
	return st.Dev, st.Ino, 0
}
