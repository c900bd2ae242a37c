package pollux

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/pollux-go/pollux"

// TestImports checks who imports whom.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", explainExit(err))
	}
	seen := 0
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := d.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen++
		name := strings.TrimPrefix(p.ImportPath, module+"/")
		for _, imported := range p.Imports {
			if why := forbidden(name, imported); why != "" {
				t.Errorf("%s imports %s: %s", p.ImportPath, imported, why)
			}
		}
	}
	if seen < 4 {
		t.Errorf("go list shows %d packages", seen)
	}
}

// forbidden says why a package of ours, named by its path in the module, must not import another one, or nothing.
func forbidden(name, imported string) string {
	under := func(dirs ...string) bool {
		for _, dir := range dirs {
			if name == dir || strings.HasPrefix(name, dir+"/") {
				return true
			}
		}
		return false
	}
	switch {
	case imported == module && !under("cmd", "examples", "bench", "test"):
		return "nothing but programs imports the root"
	case imported == module+"/poller" && under("scheduler"), imported == module+"/scheduler" && under("poller"):
		return "poller and scheduler do not know each other"
	case strings.HasPrefix(imported, module+"/") && under("internal/sys", "internal/invariants"):
		return "it stands at the bottom"
	case imported == module+"/internal/testutil" && !under("internal/testutil", "test"):
		return "only tests import it"
	case strings.HasPrefix(imported, "golang.org/x/sys/") && !under("internal/sys", "internal/testutil", "bench", "cmd", "test"):
		return "every system call is made by internal/sys"
	case imported == "github.com/caarlos0/env/v11" && name != module:
		return "only the root reads the environment"
	}
	return ""
}

// TestImportRule checks that the rule above can be broken.
func TestImportRule(t *testing.T) {
	for _, c := range [][2]string{
		{"poller", module}, {"internal/sys", module + "/poller"}, {"poller", module + "/scheduler"}, {"scheduler", module + "/poller"},
		{"poller", "golang.org/x/sys/unix"}, {module, "golang.org/x/sys/unix"}, {module, module + "/internal/testutil"},
		{"poller", "github.com/caarlos0/env/v11"},
	} {
		if forbidden(c[0], c[1]) == "" {
			t.Errorf("%s may import %s", c[0], c[1])
		}
	}
}

// TestRequirements checks that go.mod asks for what was agreed on, and nothing else.
func TestRequirements(t *testing.T) {
	allowed := []string{
		"github.com/caarlos0/env/v11",
		"golang.org/x/sys",
		"github.com/iceber/iouring-go",
		"github.com/klauspost/cpuid/v2",
	}
	out, err := exec.Command("go", "mod", "edit", "-json").Output()
	if err != nil {
		t.Fatalf("go mod edit: %v", explainExit(err))
	}
	var mod struct {
		Module  struct{ Path string }
		Require []struct{ Path string }
		Replace []any
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	if mod.Module.Path != module || len(mod.Replace) > 0 {
		t.Errorf("the module is %q, with %d replacements", mod.Module.Path, len(mod.Replace))
	}
	for _, r := range mod.Require {
		if !slices.Contains(allowed, r.Path) {
			t.Errorf("go.mod requires %s", r.Path)
		}
	}
}

func explainExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return errors.New(string(exit.Stderr))
	}
	return err
}
