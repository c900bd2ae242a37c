package pollux

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The README's table of settings is the table that is parsed.
func TestReadmeSettings(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	rows, err := Variables(func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range rows {
		line := fmt.Sprintf("| `%s` | %s | %s | %s |", v.Name, v.Default, v.Allowed, v.Help)
		if !strings.Contains(string(text), line+"\n") {
			t.Errorf("README.md lacks the line\n%s", line)
		}
	}
	if got, want := strings.Count(string(text), "| `POLLUX_"), len(rows); got != want {
		t.Errorf("README.md has %d settings, there are %d", got, want)
	}
}
