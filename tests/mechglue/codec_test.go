// Package mechglue tests the parts of the plugin for MIT's libgssapi by themselves.
package mechglue

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gssproxyd/tests/lab"
	"gssproxyd/xdr"
)

const plugin = "../../interposer/mechglue/"

// messages are the types that the plugin's codec has, by their name in C.
var messages = map[string]xdr.Message{
	"gssx_option":                    new(xdr.Option),
	"gssx_name_attr":                 new(xdr.NameAttr),
	"gssx_status":                    new(xdr.Status),
	"gssx_call_ctx":                  new(xdr.CallCtx),
	"gssx_name":                      new(xdr.Name),
	"gssx_cred_element":              new(xdr.CredElement),
	"gssx_cred":                      new(xdr.Cred),
	"gssx_ctx":                       new(xdr.Ctx),
	"gssx_cb":                        new(xdr.CB),
	"gssx_arg_get_call_context":      new(xdr.ArgGetCallContext),
	"gssx_res_get_call_context":      new(xdr.ResGetCallContext),
	"gssx_arg_import_and_canon_name": new(xdr.ArgImportAndCanonName),
	"gssx_res_import_and_canon_name": new(xdr.ResImportAndCanonName),
	"gssx_arg_acquire_cred":          new(xdr.ArgAcquireCred),
	"gssx_res_acquire_cred":          new(xdr.ResAcquireCred),
	"gssx_arg_init_sec_context":      new(xdr.ArgInitSecContext),
	"gssx_res_init_sec_context":      new(xdr.ResInitSecContext),
	"gssx_arg_accept_sec_context":    new(xdr.ArgAcceptSecContext),
	"gssx_res_accept_sec_context":    new(xdr.ResAcceptSecContext),
}

// names are the keys of messages in a fixed order.
var names = slices.Sorted(maps.Keys(messages))

// newMessage returns a zero message of the type called name in C.
func newMessage(name string) xdr.Message {
	return reflect.New(reflect.TypeOf(messages[name]).Elem()).Interface().(xdr.Message)
}

// codec is the plugin's codec, in a process that ends at the first thing that C does not define.
type codec struct {
	program string
	cmd     *exec.Cmd // nil when it does not run
	in      io.WriteCloser
	out     *bufio.Reader
	errors  bytes.Buffer
}

// newCodec builds csrc/codec.c with what it tests. The process runs until the test ends.
func newCodec(tb testing.TB) *codec {
	tb.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		lab.Lacking(tb, "gcc", err)
	}
	sources := []string{"csrc/codec.c", plugin + "xdr.c", plugin + "gss_proxy_xdr.c"}
	// The go command keeps a test's result until a file changes that the test itself has looked at.
	for _, f := range append([]string{plugin + "xdr.h", plugin + "gss_proxy_xdr.h"}, sources...) {
		if _, err := os.Stat(f); err != nil {
			tb.Fatal(err)
		}
	}
	c := &codec{program: filepath.Join(tb.TempDir(), "codec")}
	args := append([]string{"-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-fsanitize=address,undefined",
		"-fno-sanitize-recover=all", "-I" + plugin, "-o", c.program}, sources...)
	if text, err := exec.Command("gcc", args...).CombinedOutput(); err != nil || len(text) > 0 {
		tb.Fatalf("gcc: %v\n%s", err, text)
	}
	tb.Cleanup(func() {
		if err := c.stop(); err != nil { // memory that was not freed is an error too
			tb.Errorf("%v\n%s", err, &c.errors)
		}
	})
	return c
}

func (c *codec) start(tb testing.TB) {
	c.cmd = exec.Command(c.program)
	c.errors.Reset()
	c.cmd.Stderr = &c.errors
	in, err1 := c.cmd.StdinPipe()
	out, err2 := c.cmd.StdoutPipe()
	if err := c.cmd.Start(); err1 != nil || err2 != nil || err != nil {
		tb.Fatal(err1, err2, err)
	}
	c.in, c.out = in, bufio.NewReader(out)
}

func (c *codec) stop() error {
	if c.cmd == nil {
		return nil
	}
	cmd := c.cmd
	c.cmd = nil
	c.in.Close()
	return cmd.Wait()
}

// again views data as a message and puts it again. outcome is what csrc/codec.c says it is; read is
// the number of bytes that were viewed.
func (c *codec) again(tb testing.TB, name string, data []byte) (outcome string, read int, put []byte) {
	tb.Helper()
	if c.cmd == nil {
		c.start(tb)
	}
	size := 0
	_, err := c.in.Write(fmt.Appendf(nil, "%s %d\n%s", name, len(data), data))
	if err == nil {
		_, err = fmt.Fscanf(c.out, "%s %d %d\n", &outcome, &read, &size)
	}
	if err == nil {
		put = make([]byte, size)
		_, err = io.ReadFull(c.out, put)
	}
	if err != nil {
		tb.Fatalf("%s %x: %v, %v\n%s", name, data, err, c.stop(), &c.errors)
	}
	return outcome, read, put
}

// agree fails the test if C and Go do not make the same of data. It reports whether they accept it.
func (c *codec) agree(tb testing.TB, name string, data []byte) bool {
	tb.Helper()
	outcome, read, put := c.again(tb, name, data)
	m := newMessage(name)
	d := xdr.NewDecoder(data)
	m.Decode(d)
	canonical := m.Append(nil)
	if d.Err() != nil || !boolsOf01(canonical, data) {
		if outcome != "bad" {
			tb.Fatalf("%s %x\nis %s in C, in Go %v", name, data, outcome, d.Err())
		}
		if zero := newMessage(name).Append(nil); !bytes.Equal(put, zero) {
			tb.Fatalf("%s %x\nis bad, but viewed as %x", name, data, put)
		}
		return false
	}
	if outcome != "ok" || read != d.Offset() || len(put) != read {
		tb.Fatalf("%s %x\nis %s in C after %d bytes, of which it puts %d; in Go it has %d", name, data, outcome, read, len(put), d.Offset())
	}
	if bytes.Equal(canonical, data[:read]) && !bytes.Equal(put, canonical) {
		tb.Fatalf("%s %x\nbecame %x", name, data, put)
	}
	// What is kept raw keeps its padding, so the bytes may differ where they mean the same.
	d.Reset(put)
	m.Decode(d)
	if again := m.Append(nil); d.Err() != nil || !bytes.Equal(again, canonical) {
		tb.Fatalf("%s %x\nbecame %x: %v", name, data, put, d.Err())
	}
	return true
}

// boolsOf01 reports whether every bool in data is 0 or 1: C takes no other, Go does. Besides bools
// only padding can differ from the canonical form, and no word that ends in padding is 1 there.
func boolsOf01(canonical, data []byte) bool {
	for i := 0; i < len(canonical); i += 4 {
		if binary.BigEndian.Uint32(canonical[i:]) == 1 && binary.BigEndian.Uint32(data[i:]) != 1 {
			return false
		}
	}
	return true
}

// random sets v to a random value.
func random(r *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 1)
	case reflect.Int32:
		v.SetInt(int64(int32(r.Uint32())))
	case reflect.Uint64:
		v.SetUint(r.Uint64())
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			b := make([]byte, r.IntN(10))
			for i := range b {
				b[i] = byte(r.Uint32())
			}
			v.SetBytes(b)
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), r.IntN(3), 3))
		for i := range v.Len() {
			if r.IntN(2) == 0 { // or the least that an element takes
				random(r, v.Index(i))
			}
		}
	case reflect.Struct:
		if strings.HasPrefix(v.Type().Name(), "Opt[") && r.IntN(2) == 0 {
			return
		}
		for i := range v.NumField() {
			random(r, v.Field(i))
		}
		if strings.HasPrefix(v.Type().Name(), "Opt[") {
			v.Field(0).SetBool(true)
		}
	default:
		panic("no random values for " + v.Type().String())
	}
}

// mutate returns data with some words changed: to a random one, one that is off by one, or one that
// promises as much as could just be there, or more.
func mutate(r *rand.Rand, data []byte) []byte {
	data = bytes.Clone(data)
	for range 1 + r.IntN(2) {
		i := r.IntN(len(data)/4) * 4
		left := uint32(len(data) - i - 4)
		old := binary.BigEndian.Uint32(data[i:])
		values := []uint32{r.Uint32(), 0, 1, 2, 1 << 31, 1<<32 - 1, old + 1, old - 1, old ^ 1<<r.IntN(32),
			left, left + 1, left - 1, left - 3, left / 4, left/4 + 1, left / 8, left/8 + 1, left / 12, left / 52}
		binary.BigEndian.PutUint32(data[i:], values[r.IntN(len(values))])
	}
	return data
}

// captured returns the messages in the traffic of the C daemon with its client plugin and with the
// Linux kernel, with their names in C.
func captured(tb testing.TB, each func(name string, data []byte)) {
	tb.Helper()
	files, err1 := filepath.Glob("../../testdata/captures/*.jsonl")
	kernel, err2 := filepath.Glob("../../testdata/kernel/*/*.bin") // a call, then its reply
	if err1 != nil || err2 != nil || len(files) == 0 || len(kernel) == 0 || len(kernel)%2 != 0 {
		tb.Fatalf("%d captures, %d kernel records: %v %v", len(files), len(kernel), err1, err2)
	}
	byType := map[reflect.Type]string{}
	for name, m := range messages {
		byType[reflect.TypeOf(m)] = name
	}
	body := func(header, m xdr.Message, record []byte) {
		d := xdr.NewDecoder(record[4:]) // behind the record mark
		header.Decode(d)
		if d.Err() != nil {
			tb.Fatal(d.Err())
		}
		if name := byType[reflect.TypeOf(m)]; name != "" && d.Remaining() > 0 {
			each(name, record[4+d.Offset():])
		}
	}
	pair := func(call, reply []byte) {
		var header xdr.CallHeader
		body(&header, xdr.Proc(binary.BigEndian.Uint32(call[24:])).Arg(), call)
		body(new(xdr.ReplyHeader), xdr.Proc(header.Procedure).Res(), reply)
	}
	read := func(file string) []byte {
		b, err := os.ReadFile(file)
		if err != nil {
			tb.Fatal(err)
		}
		return b
	}
	for _, file := range files {
		for line := range bytes.Lines(read(file)) {
			var x struct{ Call, Reply string }
			if err := json.Unmarshal(line, &x); err != nil {
				tb.Fatalf("%s: %v", file, err)
			}
			if x.Call == "" {
				continue // a mark between two test programs
			}
			call, err1 := hex.DecodeString(x.Call)
			reply, err2 := hex.DecodeString(x.Reply)
			if err1 != nil || err2 != nil {
				tb.Fatalf("%s: %v %v", file, err1, err2)
			}
			pair(call, reply)
		}
	}
	for i := 0; i < len(kernel); i += 2 {
		pair(read(kernel[i]), read(kernel[i+1]))
	}
}

// The plugin's codec and the daemon's take the same messages for the same, and refuse the same.
func TestCodec(t *testing.T) {
	c := newCodec(t)

	// All that the header declares is tested.
	header, err := os.ReadFile(plugin + "gss_proxy_xdr.h")
	if err != nil {
		t.Fatal(err)
	}
	var declared []string
	for _, m := range regexp.MustCompile(`(?m)^void view_(\w+)\(`).FindAllSubmatch(header, -1) {
		declared = append(declared, string(m[1]))
	}
	if slices.Sort(declared); !slices.Equal(declared, names) {
		t.Fatalf("the header has\n%q, and the test\n%q", declared, names)
	}

	r := rand.New(rand.NewPCG(1, 2))
	accepted, refused := 0, 0
	spoil := func(name string, data []byte, times int) {
		for range times {
			if c.agree(t, name, mutate(r, data)) {
				accepted++
			} else {
				refused++
			}
			if n := r.IntN(len(data)); c.agree(t, name, data[:n]) {
				t.Fatalf("%s: accepted when cut to %d bytes: %x", name, n, data)
			}
		}
	}
	for _, name := range names {
		for range 50 {
			m := newMessage(name)
			random(r, reflect.ValueOf(m).Elem())
			data := m.Append(nil)
			if !c.agree(t, name, data) || !c.agree(t, name, append(data, 1, 2, 3)) {
				t.Fatalf("%s: refused: %x", name, data)
			}
			spoil(name, data, 20)
		}
	}
	seen := map[string]int{}
	captured(t, func(name string, data []byte) {
		if !c.agree(t, name, data) {
			t.Fatalf("%s: refused: %x", name, data)
		}
		if seen[name]++; seen[name] < 10 {
			spoil(name, data, 20)
		}
	})
	t.Logf("captured: %v; of what was changed %d were accepted and %d refused", seen, accepted, refused)
	for _, name := range names {
		if strings.HasPrefix(name, "gssx_res_") && !strings.Contains(name, "call_context") && seen[name] == 0 {
			t.Errorf("no %s in the captures", name)
		}
	}
	if accepted == 0 || refused == 0 {
		t.Errorf("of what was changed %d were accepted and %d refused", accepted, refused)
	}

	// What is put has an end: the greatest record that the daemon takes.
	const most = 1 << 20
	for n, want := range map[int]string{most - 8: "ok", most - 7: "long"} {
		o := xdr.Option{Value: make([]byte, n)}
		if outcome, _, _ := c.again(t, "gssx_option", o.Append(nil)); outcome != want {
			t.Errorf("a message of %d bytes is %s", n+8, outcome)
		}
	}
}

// FuzzReply views any bytes as any message.
func FuzzReply(f *testing.F) {
	c := newCodec(f)
	seen := map[string]int{}
	captured(f, func(name string, data []byte) {
		if seen[name]++; seen[name] < 4 && len(data) < 4096 {
			f.Add(slices.Index(names, name), data)
		}
	})
	r := rand.New(rand.NewPCG(1, 2))
	for i, name := range names {
		m := newMessage(name)
		random(r, reflect.ValueOf(m).Elem())
		f.Add(i, m.Append(nil))
	}
	f.Fuzz(func(t *testing.T, kind int, data []byte) {
		c.agree(t, names[uint(kind)%uint(len(names))], data)
	})
}
