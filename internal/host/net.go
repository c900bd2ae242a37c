package host

import (
	"io/fs"
	"os"
)

// Cards returns the network interfaces that are devices, and not made of software as loopback is: those that may have receive
// queues to poll.
func Cards() []string { return cards(os.DirFS("/")) }

func cards(root fs.FS) (names []string) {
	const class = "sys/class/net"
	all, err := fs.ReadDir(root, class)
	if err != nil {
		return nil
	}
	for _, entry := range all {
		if _, err := fs.Stat(root, class+"/"+entry.Name()+"/device"); err == nil {
			names = append(names, entry.Name())
		}
	}
	return names
}
