package webapi

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sft"
)

// A source is the module's source, as far as the reference is made of it: the
// comments, the values of enumerations, and which codes and roles are in an
// operation. Packages are parsed when they are first asked for.
type source struct {
	t        *testing.T
	packages map[string]*sourcePackage
}

type sourcePackage struct {
	path    string
	docs    map[string]string // of Type, Type.Method and function
	structs map[string]*ast.StructType
	consts  map[string][]constant // by type
	vars    map[string]*declared
	funcs   map[string][]*declared // by name, methods too
}

// A declared is a piece of source, with what the names of packages mean in
// its file.
type declared struct {
	pkg     *sourcePackage
	imports map[string]string
	method  bool
	node    ast.Node
}

// A constant is one value of an enumeration; value is empty unless it is a
// string.
type constant struct{ name, value, doc string }

func (s *source) pkg(path string) *sourcePackage {
	if p := s.packages[path]; p != nil {
		return p
	}
	p := &sourcePackage{path: path, docs: map[string]string{}, structs: map[string]*ast.StructType{}, consts: map[string][]constant{}, vars: map[string]*declared{}, funcs: map[string][]*declared{}}
	s.packages[path] = p
	dir := filepath.Join("../..", strings.TrimPrefix(path, "sft"))
	pkgs, err := parser.ParseDir(token.NewFileSet(), dir, func(f fs.FileInfo) bool { return !strings.HasSuffix(f.Name(), "_test.go") }, parser.ParseComments)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, parsed := range pkgs {
		for _, name := range slices.Sorted(maps.Keys(parsed.Files)) {
			p.add(parsed.Files[name])
		}
	}
	return p
}

func (p *sourcePackage) add(f *ast.File) {
	imports := map[string]string{}
	for _, i := range f.Imports {
		path, _ := strconv.Unquote(i.Path.Value)
		name := path[strings.LastIndex(path, "/")+1:]
		if i.Name != nil {
			name = i.Name.Name
		}
		imports[name] = path
	}
	for _, d := range f.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			name := d.Name.Name
			p.funcs[name] = append(p.funcs[name], &declared{p, imports, d.Recv != nil, d})
			if d.Recv != nil {
				name = receiver(d) + "." + name
			}
			p.docs[name] = text(d.Doc)
		case *ast.GenDecl:
			kind := "" // the type of the constants, which those without one inherit
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					p.docs[spec.Name.Name] = text(spec.Doc, d.Doc)
					if st, ok := spec.Type.(*ast.StructType); ok {
						p.structs[spec.Name.Name] = st
					}
				case *ast.ValueSpec:
					if d.Tok == token.VAR {
						for i, n := range spec.Names {
							if i < len(spec.Values) {
								p.vars[n.Name] = &declared{p, imports, false, spec.Values[i]}
							}
						}
						continue
					}
					if id, ok := spec.Type.(*ast.Ident); ok {
						kind = id.Name
					} else if len(spec.Values) > 0 {
						kind = ""
					}
					c := constant{name: spec.Names[0].Name, doc: text(spec.Comment, spec.Doc)}
					if len(spec.Values) > 0 {
						if lit, ok := spec.Values[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
							c.value, _ = strconv.Unquote(lit.Value)
						}
					}
					p.consts[kind] = append(p.consts[kind], c)
				}
			}
		}
	}
}

func receiver(d *ast.FuncDecl) string {
	e := d.Recv.List[0].Type
	if s, ok := e.(*ast.StarExpr); ok {
		e = s.X
	}
	if id, ok := e.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

// text is the first comment that says something, in paragraphs of one line.
func text(groups ...*ast.CommentGroup) string {
	for _, g := range groups {
		if s := strings.TrimSpace(g.Text()); s != "" {
			var out []string
			for _, par := range strings.Split(s, "\n\n") {
				out = append(out, strings.Join(strings.Fields(par), " "))
			}
			return strings.Join(out, "\n\n")
		}
	}
	return ""
}

// fieldDoc is the comment of a struct's field: the field's own, or one above
// it in the same struct that names it.
func fieldDoc(st *ast.StructType, name string) string {
	above := ""
	for _, f := range st.Fields.List {
		own := text(f.Doc, f.Comment)
		if f.Doc != nil {
			above = own
		}
		for _, n := range f.Names {
			if n.Name != name {
				continue
			}
			if own == "" && regexp.MustCompile(`\b`+name+`\b`).MatchString(above) {
				return above
			}
			return own
		}
	}
	return ""
}

// structOf is the source of a struct type; nil for what has none.
func (s *source) structOf(t reflect.Type) *ast.StructType {
	name, _, _ := strings.Cut(t.Name(), "[")
	if name == "" || !strings.HasPrefix(t.PkgPath(), "sft") {
		return nil
	}
	return s.pkg(t.PkgPath()).structs[name]
}

// A trail is what an operation was seen to use: refusals and actions.
type trail struct {
	s       *source
	seen    map[*declared]bool
	codes   map[sft.Code]bool
	actions map[string]bool // names in package policy
}

func (s *source) trail() *trail {
	return &trail{s, map[*declared]bool{}, map[sft.Code]bool{}, map[string]bool{}}
}

// callees are the packages whose methods an operation may call.
var callees = []string{"sft/internal/platform", "sft/internal/ca", "sft/internal/cloudid", "sft/internal/rdpsign"}

// follow goes through a function and all that it may call. A method is looked
// for by its name alone, so that there may be too much, and not too little.
func (t *trail) follow(d *declared) {
	if t.seen[d] {
		return
	}
	t.seen[d] = true
	var visit func(ast.Node) bool
	visit = func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			fun := n.Fun
			if i, ok := fun.(*ast.IndexExpr); ok {
				fun = i.X
			}
			sel, ok := fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && d.imports[x.Name] != "" {
				// Policy asked once more, inside an operation, is not its rule.
				return x.Name+"."+sel.Sel.Name != "policy.May"
			} else if ok && x.Name == "tx" {
				return true // the store's, which refuses nothing by itself
			}
			_, field := sel.X.(*ast.SelectorExpr)
			for _, path := range append(callees, d.pkg.path) {
				if path == "sft/internal/cloudid" && !field { // the platform's field AWS; other things are verified, too
					continue
				}
				if sel.Sel.Name == "repeated" { // of those that make something, which operations knows
					continue
				}
				for _, f := range t.s.pkg(path).funcs[sel.Sel.Name] {
					if f.method && receiver(f.node.(*ast.FuncDecl)) != "BackupFile" { // which no operation has
						t.follow(f)
					}
				}
			}
		case *ast.BinaryExpr: // a code that is compared is not one that is given
			return n.Op != token.EQL && n.Op != token.NEQ
		case *ast.SelectorExpr:
			x, ok := n.X.(*ast.Ident)
			if !ok {
				ast.Inspect(n.X, visit)
				return false
			}
			if !strings.HasPrefix(d.imports[x.Name]+"/", "sft/") {
				return false
			}
			p := t.s.pkg(d.imports[x.Name])
			for _, c := range p.consts["Code"] {
				if c.name == n.Sel.Name {
					t.codes[sft.Code(c.value)] = true
				}
			}
			if p.path == "sft/internal/policy" && slices.ContainsFunc(p.consts["Action"], func(c constant) bool { return c.name == n.Sel.Name }) {
				t.actions[n.Sel.Name] = true
			}
			t.named(p, n.Sel.Name)
			return false
		case *ast.Ident:
			t.named(d.pkg, n.Name)
		}
		return true
	}
	ast.Inspect(d.node, visit)
}

func (t *trail) named(p *sourcePackage, name string) {
	if v := p.vars[name]; v != nil {
		t.follow(v)
	}
	for _, f := range p.funcs[name] {
		if !f.method {
			t.follow(f)
		}
	}
}
