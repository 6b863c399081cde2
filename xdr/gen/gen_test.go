package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is committed is what the .x files say.
func TestGenerated(t *testing.T) {
	t.Chdir("..")
	for _, j := range jobs {
		want, err := generate(j.from, j.write)
		if err != nil {
			t.Error(err)
			continue
		}
		got, err := os.ReadFile(j.to)
		if err != nil {
			t.Error(err)
			continue
		}
		if string(got) != string(want) {
			t.Errorf("%s is not what %s generates: run go generate ./xdr", j.to, j.from)
		}
	}
}

func TestErrors(t *testing.T) {
	const s = "struct s { int a; };\n" // line 1
	for _, c := range []struct{ src, want string }{
		{s + "struct t {\n  s *next;\n  t *self;\n};", `x.x:4: "t" is not a type defined above; a type must come before its use, and may not contain itself`},
		{"\n\nstruct s { int a }", `x.x:3: ";" expected, found "}"`},
		{"struct s { int a;", `x.x:1: a type expected, found the end of the file`},
		{"struct s { = };", `x.x:1: a type expected, found "="`},
		{"struct _ { int a; };", `x.x:1: a name expected, found "_"`},
		{"typedef hyper a[1048576];", "x.x:1: a takes at least 8388608 bytes; at most 1048576 are possible"},
		{"/* \a */", "x.x:1: comment with a character U+0007"},
		{"struct s {};", "x.x:1: struct s has no fields"},
		{s + "struct s { int b; };", "x.x:2: s is already defined at x.x:1; choose another name"},
		{s + "const s = 1;", "x.x:2: s is already defined at x.x:1"},
		{"struct s { int a;\n int a; };", "x.x:2: struct s already has a field a at x.x:1"},
		{"struct s { void; };", "x.x:1: a void field in struct s"},
		{"struct s { double d; };", "x.x:1: double is not supported"},
		{"struct s { struct { int a; } b; };", "x.x:1: a struct inside a declaration is not supported"},
		{"struct s { opaque a; };", "x.x:1: a is opaque or a string without a size; write <>, <limit> or [size] behind the name"},
		{"struct s { opaque *a; };", "x.x:1: an optional of opaque or string"},
		{"struct s { opaque a[0]; };", "x.x:1: the size of a is 0; it must be from 1 to 1048576"},
		{"struct s { int a<-1>; };", "x.x:1: the limit of a is -1"},
		{"struct s { int a<N>; };", `x.x:1: a number or the name of a constant expected, found "N"`},
		{"struct s { int a<0x>; };", `x.x:1: "0x" is not a number`},
		{"struct s { int int; };", `x.x:1: a name expected, found the keyword "int"`},
		{"struct s { int 3; };", `x.x:1: a name expected, found "3"`},
		{"const = 3;", `x.x:1: a name expected, found "="`},
		{"const A = 3", `x.x:1: ";" expected, found the end of the file`},
		{"typedef void;", "x.x:1: a typedef of void says nothing"},
		{"enum e { A = 1, B = 1 };", "x.x:1: A and B are both 1"},
		{"enum e { A = 4294967295 };", "x.x:1: A is 4294967295; an enum value must fit in 32 bits with a sign"},
		{"enum e { A = 1;", `x.x:1: "," or "}" expected after A, found ";"`},
		{"enum e { A };", `x.x:1: "=" expected, found "}"`},
		{"enum e { A = 1, };", `x.x:1: a name expected, found "}"`},
		{"union u switch (hyper h) { case 1: void; };", "x.x:1: union u switches on h; an int, an unsigned int or an enum is possible"},
		{"union u switch (int i) { default: void; };", "x.x:1: union u has no case"},
		{"union u switch (int i) { case 1: void;\ncase 1: void; };", "x.x:2: case 1 is already at x.x:1"},
		{"union u switch (int i) { case 1: int a; case 2: int a; };", "x.x:1: union u already has a field a"},
		{"union u switch (int i) { case 1: int i; };", "x.x:1: union u already has a field i"},
		{"union u switch (int i) { case 1: void; default: void; default: void; };", "x.x:1: a second default in union u"},
		{"union u switch (int i) { case 1: default: void; };", "x.x:1: a case that shares its arm with default"},
		{"union u switch (int i) { int a; };", `x.x:1: "case", "default" or "}" expected in union u, found "int"`},
		{"program P { version V { int A(void) = 1; } = 1; } = 1;", "x.x:1: arguments and results are void, a struct or a union here"},
		{"program P { version V { void A(void) = 1; void B(void) = 1; } = 1; } = 1;", "x.x:1: A and B are both procedure 1"},
		{"program P { version V { void A(void) = -1; } = 1; } = 1;", "x.x:1: the number of A is -1"},
		{"program P { version V { void A(void) = 1; } = 1; version W { void C(void) = 1; } = 2; } = 1;", "x.x:1: a second version"},
		{"program P { version V { void A(void) = 1; } = 1; } = 1;\nprogram Q {", "x.x:2: a second program"},
		{"/* a\nb */ #define X", `x.x:2: unexpected character '#'`},
		{"/* a\n", "x.x:1: comment without an end"},
		{"int a;", `x.x:1: const, typedef, enum, struct, union or program expected, found "int"`},
	} {
		_, err := parse("x.x", c.src)
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s\n gives %v\n  want %s", c.src, err, c.want)
		}
	}
}

// What the .x files of the project do not need.
func TestWrite(t *testing.T) {
	f, err := parse("x.x", `
/* One is a message.
   It has two lines. */
struct p_one {
    /* what a is */
    unsigned a; /* and more */
    string b<>;
};
/* a comment that belongs to nothing */

union p_two switch (unsigned x_id) {
case 0x10:
    void;
default:
    p_one one<5>;
};
program P {
    version V {
        p_two P_GO(p_one) = 7;
    } = 3;
} = 0x20;
`)
	if err != nil {
		t.Fatal(err)
	}
	src, err := (&writer{prefix: "p_"}).write(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"// Code generated by xdr/gen from x.x. DO NOT EDIT.\n",
		"// One is a message. It has two lines.\ntype One struct {\n\t// what a is\n\tA uint32 // and more\n\tB string\n}\n",
		"type Two struct {\n\tXID uint32\n\tOne []One\n}\n",
		"\tswitch v.XID {\n\tcase 0x10:\n\tdefault:\n\t\tv.One = nil\n\t\tif n := d.CountMax(8, 5); n > 0 {\n",
		"\tProgram = 32\n\tVersion = 3\n",
		"\tProcGo Proc = 7\n",
		"\tcase ProcGo:\n\t\treturn \"GO\"\n",
		"\tcase ProcGo:\n\t\treturn new(One)\n",
		"\tcase ProcGo:\n\t\treturn new(Two)\n",
	} {
		if !strings.Contains(string(src), want) {
			t.Errorf("missing %q in\n%s", want, src)
		}
	}
	if strings.Contains(string(src), "belongs to nothing") {
		t.Error("a comment went astray")
	}
}

// What the C writer does not know it refuses, but only where a procedure reaches it.
func TestErrorsC(t *testing.T) {
	const prog = "program P { version V { void A(t) = 1; void B(void) = 2; } = 1; } = 1;"
	plain := "struct t { int i; unsigned hyper h; bool b; opaque o<>; };\n"
	for _, c := range []struct{ src, proc, want string }{
		{"struct t { int a; };", "A", "x.x: no program"},
		{plain + prog, "C", "x.x: no procedure C"},
		{plain + prog, "A", ""},
		{"union t switch (int i) { case 1: void; };" + prog, "A", "x.x:1: union t is not supported by the C writer"},
		{"union t switch (int i) { case 1: void; };" + prog, "B", ""},
		{"union u switch (int i) { case 1: void; };\nstruct t { u *x; };" + prog, "A", "x.x:1: union u is not supported by the C writer"},
		{"struct t {\nopaque a[3]; };" + prog, "A", "x.x:2: the type of a is not supported by the C writer"},
		{"struct t { opaque a<3>; };" + prog, "A", "x.x:1: the type of a"},
		{"struct t { hyper a; };" + prog, "A", "x.x:1: the type of a"},
		{"struct a { opaque b[1048576]; };\nstruct t { a b; a c; };" + prog, "A", "x.x:2: t takes at least 2097152 bytes"},
		{"struct t { int a[3]; };" + prog, "A", "x.x:1: the type of a"},
		{"struct t { int a<>; };" + prog, "A", "x.x:1: the type of a"},
		{plain + "struct u { t a<3>; };" + strings.ReplaceAll(prog, "t)", "u)"), "A", "x.x:2: the type of a"},
		{"typedef int *p; struct t { p *a; };" + prog, "A", "x.x:1: the type of a"},
		{"typedef opaque o<3>; struct t { o a<>; };" + prog, "A", "x.x:1: the type of a"},
	} {
		f, err := parse("x.x", c.src)
		if err != nil {
			t.Errorf("%s: %v", c.src, err)
			continue
		}
		s := subset{procs: []string{c.proc}}
		for _, write := range []func(*file) ([]byte, error){s.header, s.source} {
			if _, err := write(f); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)) {
				t.Errorf("%s\n gives %v\n  want %s", c.src, err, c.want)
			}
		}
	}
}

// FuzzParse: no input makes the generator panic, and what it parses becomes Go that parses, and C or
// an error.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("../*.x")
	if err != nil || len(files) == 0 {
		f.Fatalf("no .x files: %v", err)
	}
	for _, name := range append(files, "testdata/sample.x") {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Add("union u switch (int i) { case 1: case -3: void; default: opaque a[3]; };")
	f.Fuzz(func(t *testing.T, src string) {
		x, err := parse("x.x", src)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "x.x:") {
				t.Fatalf("an error without a place: %v", err)
			}
			return
		}
		if _, err := (&writer{prefix: "gssx_"}).write(x); err != nil {
			t.Fatal(err)
		}
		all := plugin
		if x.prog != nil {
			all.procs = nil
			for _, p := range x.prog.procs {
				all.procs = append(all.procs, p.name)
			}
		}
		for _, write := range []func(*file) ([]byte, error){all.header, all.source} {
			if _, err := write(x); err != nil && !strings.HasPrefix(err.Error(), "x.x:") {
				t.Fatalf("an error without a place: %v", err)
			}
		}
	})
}
