package pollux

import (
	"strconv"
	"strings"
	"testing"
)

func lookup(name, value string) func(string) (string, bool) {
	return func(n string) (string, bool) { return value, n == name }
}

func TestUringSettings(t *testing.T) {
	for _, tc := range []struct {
		name, value string
		got         func(Config) any
		want        any
	}{
		{"POLLUX_BACKEND", "io_uring", func(c Config) any { return c.Backend }, KindUring},
		{"POLLUX_RING_ENTRIES", "8", func(c Config) any { return c.RingEntries }, 8},
		{"POLLUX_RING_ENTRIES", "", func(c Config) any { return c.RingEntries }, 1024},
		{"POLLUX_BUFFERS", "32768", func(c Config) any { return c.RingBuffers }, 32768},
		{"POLLUX_RING_BUFFER_SIZE", "16KiB", func(c Config) any { return c.RingBufferSize }, 16384},
		{"POLLUX_DIRECT", "20000", func(c Config) any { return c.DirectDescriptors }, 20000},
		{"POLLUX_DIRECT", "", func(c Config) any { return c.DirectDescriptors }, 0},
		{"POLLUX_URING_FEATURES", "-multishot_recv,-buffer_ring", func(c Config) any { return c.UringFeatures }, "-multishot_recv,-buffer_ring"},
	} {
		set := lookup(tc.name, tc.value)
		c, err := ConfigFromEnv(func(name string) (string, bool) {
			if name == "POLLUX_BACKEND" {
				return "io_uring", true // direct descriptors want it
			}
			return set(name)
		})
		if err != nil || tc.got(c) != tc.want {
			t.Errorf("%s=%q: %v, %v", tc.name, tc.value, tc.got(c), err)
		}
	}
}

// An error names the variable, the value and what is allowed.
func TestUringSettingsOutOfRange(t *testing.T) {
	for _, tc := range []struct{ name, value, allowed string }{
		{"POLLUX_BACKEND", "kqueue", "auto, epoll, io_uring"},
		{"POLLUX_RING_ENTRIES", "0", "a power of two, 8 to 8192"},
		{"POLLUX_RING_ENTRIES", "1000", "a power of two, 8 to 8192"},
		{"POLLUX_RING_ENTRIES", "16384", "a power of two, 8 to 8192"},
		{"POLLUX_RING_ENTRIES", "x", "a power of two, 8 to 8192"},
		{"POLLUX_BUFFERS", "2", "a power of two, 4 to 32768"},
		{"POLLUX_BUFFERS", "65536", "a power of two, 4 to 32768"},
		{"POLLUX_RING_BUFFER_SIZE", "255", "256 to 1MiB"},
		{"POLLUX_RING_BUFFER_SIZE", "2MiB", "256 to 1MiB"},
		{"POLLUX_DIRECT", "1048577", "0 to 1048576"},
		{"POLLUX_DIRECT", "-1", "0 to 1048576"},
		{"POLLUX_URING_FEATURES", "multishot_recv", "names with a - before them"},
		{"POLLUX_URING_FEATURES", "-multishot", "multishot_recv"},
	} {
		_, err := ConfigFromEnv(lookup(tc.name, tc.value))
		if err == nil {
			t.Errorf("%s=%q was accepted", tc.name, tc.value)
			continue
		}
		for _, want := range []string{tc.name, `"` + tc.value + `"`, tc.allowed} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s=%q: no %q in %q", tc.name, tc.value, want, err)
			}
		}
	}
	if _, err := (Config{RingBuffers: 32768, RingBufferSize: 1 << 20}).withDefaults(); err == nil {
		t.Error("32 GiB of buffers a loop were accepted")
	}
	if _, err := (Config{UringFeatures: "-x"}).withDefaults(); err == nil || !strings.Contains(err.Error(), `"-x"`) {
		t.Errorf("a feature that nobody knows: %v", err)
	}
}

// Values that are allowed each and do not go together are named together, with those that are defaults.
func TestSettingsThatClash(t *testing.T) {
	for _, set := range []map[string]string{
		{"POLLUX_DIRECT": "1", "POLLUX_BACKEND": "epoll"},
		{"POLLUX_DIRECT": "1", "POLLUX_BACKEND": ""},
		{"POLLUX_DIRECT": "1", "POLLUX_MAX_CONNS": "5", "POLLUX_BACKEND": "io_uring"},
		{"POLLUX_BUFFERS": "32768", "POLLUX_RING_BUFFER_SIZE": "1MiB"},
		{"POLLUX_WRITE_LOW": "2MiB", "POLLUX_WRITE_LIMIT": ""},
		{"POLLUX_WRITE_LOW": "2KiB", "POLLUX_WRITE_LIMIT": "1KiB"},
		{"POLLUX_ISOLATE": "on", "POLLUX_CPUS": "none"},
		{"POLLUX_SCHED": "fifo:1", "POLLUX_SPIN": "10us"},
	} {
		_, err := ConfigFromEnv(func(name string) (string, bool) { return set[name], set[name] != "" })
		if err == nil {
			t.Errorf("%v was accepted", set)
			continue
		}
		if strings.Contains(err.Error(), "out of range") || !strings.Contains(err.Error(), "do not go together") {
			t.Errorf("%v: %v", set, err)
		}
		rows, _ := Variables(func(string) (string, bool) { return "", false })
		for _, row := range rows {
			value, ok := set[row.Name]
			if value == "" {
				value = row.Default
			}
			if want := row.Name + "=" + strconv.Quote(value); ok && row.Name != "POLLUX_BACKEND" && !strings.Contains(err.Error(), want) {
				t.Errorf("%v: no %s in %q", set, want, err)
			}
		}
	}
}
