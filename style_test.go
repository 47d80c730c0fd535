package sft

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// TestStyle holds what a reader counts on: each package says what it is for,
// each exported name says what it promises, and errors read as one sentence
// when they are put together.
func TestStyle(t *testing.T) {
	files := map[string][]*ast.File{}
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "build" || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && d.Name() != ".") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		files[filepath.Dir(path)] = append(files[filepath.Dir(path)], f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, list := range files {
		docs := 0
		for _, f := range list {
			if f.Doc != nil && !strings.HasPrefix(f.Doc.Text(), "go:build") {
				docs++
			}
			for _, d := range f.Decls {
				checkDocs(t, fset, d)
			}
			ast.Inspect(f, func(n ast.Node) bool { checkError(t, fset, n); return true })
		}
		if docs != 1 {
			t.Errorf("%s has %d package comments, want one", dir, docs)
		}
	}
}

func checkDocs(t *testing.T, fset *token.FileSet, d ast.Decl) {
	t.Helper()
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && !ofUnexported(d) {
			t.Errorf("%s: %s has no comment", fset.Position(d.Pos()), d.Name.Name)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && d.Doc == nil && s.Doc == nil {
					t.Errorf("%s: %s has no comment", fset.Position(s.Pos()), s.Name.Name)
				}
			case *ast.ValueSpec:
				if s.Names[0].IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
					t.Errorf("%s: %s has no comment", fset.Position(s.Pos()), s.Names[0].Name)
				}
			}
		}
	}
}

// ofUnexported reports whether d is a method of a type that others cannot
// name: such methods are there for an interface that is documented.
func ofUnexported(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return false
	}
	e := d.Recv.List[0].Type
	if s, ok := e.(*ast.StarExpr); ok {
		e = s.X
	}
	id, ok := e.(*ast.Ident)
	return ok && !id.IsExported()
}

func checkError(t *testing.T, fset *token.FileSet, n ast.Node) {
	t.Helper()
	var lit ast.Expr
	switch n := n.(type) {
	case *ast.CallExpr:
		sel, ok := n.Fun.(*ast.SelectorExpr)
		if !ok || len(n.Args) == 0 {
			return
		}
		if x, ok := sel.X.(*ast.Ident); !ok || x.Name+"."+sel.Sel.Name != "errors.New" && x.Name+"."+sel.Sel.Name != "fmt.Errorf" {
			return
		}
		lit = n.Args[0]
	case *ast.KeyValueExpr:
		if k, ok := n.Key.(*ast.Ident); !ok || k.Name != "Msg" {
			return
		}
		lit = n.Value
	default:
		return
	}
	b, ok := lit.(*ast.BasicLit)
	if !ok || b.Kind != token.STRING {
		return
	}
	s, err := strconv.Unquote(b.Value)
	if err != nil || s == "" {
		return
	}
	words := strings.Fields(s)
	first := []rune(words[0])
	bad := ""
	switch {
	case unicode.IsUpper(first[0]) && (len(first) == 1 || unicode.IsLower(first[1])) && !strings.HasSuffix(words[0], "DP") && !isName(words[0]):
		bad = "begins with a capital"
	case strings.HasSuffix(s, "."):
		bad = "ends with a full stop"
	case strings.Contains(s, "failed to") || strings.Contains(s, "error "):
		bad = "says that it is an error"
	}
	if bad != "" {
		t.Errorf("%s: error text %q %s", fset.Position(n.Pos()), s, bad)
	}
}

// isName reports whether a word is the name of a setting, which keeps its
// capitals.
func isName(w string) bool {
	return strings.ContainsFunc(w[1:], unicode.IsUpper)
}
