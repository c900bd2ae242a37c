package decimal

import "testing"

func TestParse(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "1": 1, "-1": -1, "9223372036854775807": 1<<63 - 1, "-9223372036854775808": -1 << 63,
	} {
		if v, ok := Parse([]byte(s)); !ok || v != want {
			t.Errorf("%s: %d, %v", s, v, ok)
		}
	}
	for _, s := range []string{"", "-", "+1", "01", "-0", "-01", " 1", "1 ", "x", "1.0", "9223372036854775808", "-9223372036854775809", "99999999999999999999"} {
		if v, ok := Parse([]byte(s)); ok {
			t.Errorf("%q: %d", s, v)
		}
	}
}
