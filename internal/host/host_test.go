//go:build linux

package host

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"testing/fstest"
)

func file(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text + "\n")} }

func TestCPUQuota(t *testing.T) {
	const (
		v2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
		v1 = "24 1 8:1 / / rw - ext4 /dev/sda rw\n31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n" +
			"32 24 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
	)
	for _, tc := range []struct {
		name, cgroups, mounts string
		files                 fstest.MapFS
		want                  Quota
	}{
		{"nothing", "", "", nil, Quota{}},
		{"v2 without a limit", "0::/a\n", v2, fstest.MapFS{"sys/fs/cgroup/a/cpu.max": file("max 100000")}, Quota{}},
		{"v2", "0::/a\n", v2, fstest.MapFS{"sys/fs/cgroup/a/cpu.max": file("150000 100000")}, Quota{1.5, "/sys/fs/cgroup/a/cpu.max"}},
		{
			"v2, a stricter one above", "0::/a/b\n", v2,
			fstest.MapFS{"sys/fs/cgroup/a/cpu.max": file("50000 100000"), "sys/fs/cgroup/a/b/cpu.max": file("100000 100000")},
			Quota{0.5, "/sys/fs/cgroup/a/cpu.max"},
		},
		{
			"v1", "4:cpu,cpuacct:/docker/x\n0::/\n", v1,
			fstest.MapFS{"sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": file("200000"), "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": file("100000")},
			Quota{2, "/sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us"},
		},
		{
			"v1 without a limit", "4:cpu,cpuacct:/\n", v1,
			fstest.MapFS{"sys/fs/cgroup/cpu/cpu.cfs_quota_us": file("-1"), "sys/fs/cgroup/cpu/cpu.cfs_period_us": file("100000")}, Quota{},
		},
		{
			// A container without a namespace of control groups sees its own group as the root of what is mounted.
			"v1, the group is mounted", "4:cpu:/docker/x\n", "31 24 0:27 /docker/x /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n",
			fstest.MapFS{"sys/fs/cgroup/cpu/cpu.cfs_quota_us": file("25000"), "sys/fs/cgroup/cpu/cpu.cfs_period_us": file("100000")},
			Quota{0.25, "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := cpuQuota(tc.files, tc.cgroups, tc.mounts); got != tc.want {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
		})
	}
	t.Log("here:", CPUQuota())
}

func TestProcessors(t *testing.T) {
	const base = "sys/devices/system/cpu/"
	root := fstest.MapFS{
		"proc/cpuinfo":                   file("processor\t: 0\nmodel name\t: Example 9000\nflags\t\t: fpu hypervisor sse\n\nprocessor\t: 1"),
		base + "online":                  file("0-3"),
		base + "isolated":                file(""),
		"sys/devices/system/node/online": file("0"),
		base + "cpu0/cache/index0/coherency_line_size": file("64"),
	}
	for cpu, siblings := range map[string]string{"0": "0,2", "1": "1,3", "2": "0,2", "3": "1,3"} {
		root[base+"cpu"+cpu+"/topology/thread_siblings_list"] = file(siblings)
		root[base+"cpu"+cpu+"/topology/physical_package_id"] = file("0")
	}
	want := CPU{
		Model: "Example 9000", Hypervisor: true, Online: "0-3", Packages: 1, Cores: 2,
		Siblings: []string{"0,2", "1,3"}, Nodes: "0", CacheLine: 64,
	}
	if got := processors(root); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	if got := processors(fstest.MapFS{}); got.Model != "" || got.Cores != 0 {
		t.Errorf("a host that hides everything has %+v", got)
	}
	t.Logf("here: %+v", Processors())
}

func TestCacheSharers(t *testing.T) {
	root := fstest.MapFS{}
	for index, cache := range [][2]string{{"1", "5"}, {"1", "5"}, {"2", "5,13"}, {"3", "4-7,12-15"}} {
		base := fmt.Sprintf("sys/devices/system/cpu/cpu5/cache/index%d/", index)
		root[base+"level"], root[base+"shared_cpu_list"] = file(cache[0]+"\n"), file(cache[1]+"\n")
	}
	if got, want := cacheSharers(root, 5), []int{4, 5, 6, 7, 12, 13, 14, 15}; !slices.Equal(got, want) {
		t.Errorf("CPU 5 shares its cache with %v, want %v", got, want)
	}
	if got := cacheSharers(root, 6); got != nil {
		t.Errorf("a CPU whose caches are hidden shares one with %v", got)
	}
	t.Log("here:", CacheSharers(0))
}

func TestList(t *testing.T) {
	for _, tc := range []struct {
		text string
		cpus []int
	}{
		{"", nil}, {"0", []int{0}}, {"0-2", []int{0, 1, 2}}, {"0-1,4,6-7", []int{0, 1, 4, 6, 7}},
	} {
		if got := ParseList(tc.text); !slices.Equal(got, tc.cpus) {
			t.Errorf("%q is %v, want %v", tc.text, got, tc.cpus)
		}
		if got := FormatList(tc.cpus); got != tc.text {
			t.Errorf("%v is %q, want %q", tc.cpus, got, tc.text)
		}
	}
	if len(Affinity()) == 0 {
		t.Error("no CPU to run on")
	}
}

func TestVersion(t *testing.T) {
	for _, tc := range []struct {
		text         string
		major, minor int
	}{
		{"6.18.44-fc", 6, 18}, {"5.10", 5, 10}, {"6.1-rc3", 6, 1}, {"7", 7, 0}, {"", 0, 0},
	} {
		if major, minor := ParseVersion(tc.text); major != tc.major || minor != tc.minor {
			t.Errorf("%q is %d.%d", tc.text, major, minor)
		}
	}
	if major, _ := Version(); major < 3 {
		t.Errorf("this is Linux %d", major)
	}
}

// What every Linux has must be found on this one.
func TestCards(t *testing.T) {
	root := fstest.MapFS{"sys/class/net/lo/mtu": file("65536"), "sys/class/net/eth0/device/vendor": file("0x1af4"), "sys/class/net/eth0/mtu": file("1500")}
	if got := cards(root); !slices.Equal(got, []string{"eth0"}) {
		t.Errorf("the cards are %q", got)
	}
	if got := cards(fstest.MapFS{}); got != nil {
		t.Errorf("without sysfs the cards are %q", got)
	}
}

func TestHere(t *testing.T) {
	if Seccomp() == "" || !Memlock().Known || !Nofile().Known || Nofile().Soft == 0 || Somaxconn() == "" {
		t.Errorf("seccomp %q, memlock %+v, nofile %+v, somaxconn %q", Seccomp(), Memlock(), Nofile(), Somaxconn())
	}
}
