package sys_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestOnlySysMakesSystemCalls walks through the module: nothing outside of this package imports golang.org/x/sys/unix or
// names a raw system call, or faults could not be injected into it. Tests may, and so may the modules nested in this
// one, which measure from outside.
func TestOnlySysMakesSystemCalls(t *testing.T) {
	const root = "../.."
	looked := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		slashed := filepath.ToSlash(path)
		if d.IsDir() {
			nested, _ := filepath.Glob(filepath.Join(path, "go.mod"))
			name := d.Name()
			if path != root && (len(nested) > 0 || name == "testdata" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")) ||
				slashed == root+"/internal/sys" || slashed == root+"/internal/testutil" {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		looked++
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		names := map[string]bool{} // what package syscall is called in this file
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			switch {
			case strings.HasPrefix(imported, "golang.org/x/sys"):
				t.Errorf("%s imports %s: what it needs belongs into internal/sys", files.Position(spec.Pos()), imported)
			case imported == "syscall" && spec.Name != nil:
				names[spec.Name.Name] = true
			case imported == "syscall":
				names["syscall"] = true
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := sel.X.(*ast.Ident); ok && names[pkg.Name] &&
				(strings.HasPrefix(sel.Sel.Name, "Syscall") || strings.HasPrefix(sel.Sel.Name, "RawSyscall")) &&
				sel.Sel.Name != "SyscallError" {
				t.Errorf("%s: syscall.%s: make the call in internal/sys", files.Position(sel.Pos()), sel.Sel.Name)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if looked < 30 {
		t.Errorf("only %d files were looked at: the module is elsewhere", looked)
	}
}
