package xdr

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// kinds are all types that travel on their own, in a fixed order.
func kinds() []reflect.Type {
	var all []reflect.Type
	add := func(m Message) {
		if m != nil {
			all = append(all, reflect.TypeOf(m).Elem())
		}
	}
	for p := ProcNull; p <= ProcWrapSizeLimit; p++ {
		add(p.Arg())
		add(p.Res())
	}
	add(new(CallHeader))
	add(new(ReplyHeader))
	add(new(SampleMessage))
	add(new(SampleScalars))
	add(new(Cred)) // on its own in the option sync_creds, and in a client's credential cache
	add(new(PodsRegistration))
	add(new(PodsAnswer))
	add(new(PodsRegistrations))
	add(new(GSSCred))
	add(new(GSSInit))
	add(new(GSSInitResult))
	add(new(GSSPrivate))
	for _, p := range []Kadm5Proc{Kadm5ProcInit, Kadm5ProcGetPrincipal, Kadm5ProcChpassPrincipal3, Kadm5ProcPurgekeys} {
		add(p.Arg())
	}
	add(new(Kadm5Result))
	add(new(Kadm5PrincipalResult))
	return all
}

func newMessage(t reflect.Type) Message { return reflect.New(t).Interface().(Message) }

// isOptional tells an Opt[T] from other structs.
func isOptional(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && strings.HasPrefix(t.Name(), "Opt[")
}

// armOf returns the index of the field that counts in a union: 0 when there is none, -1 when t is
// no union.
func armOf(v reflect.Value) int {
	switch u := v.Interface().(type) {
	case Handle:
		switch u.HandleType {
		case HandleSecCtx:
			return 1
		case HandleCred:
			return 2
		}
		return 3
	case Reply:
		return map[ReplyStat]int{ReplyAccepted: 1, ReplyDenied: 2}[u.Stat]
	case Acceptance:
		return map[AcceptStat]int{AcceptProgMismatch: 1}[u.Stat]
	case Denied:
		return map[RejectStat]int{RejectRPCMismatch: 1, RejectAuthError: 2}[u.Stat]
	case Kadm5Name:
		return map[int32]int{0: 1}[u.Absent]
	case Kadm5TaggedData:
		return 0
	case Kadm5Key:
		return map[int32]int{1: 1, 2: 2}[u.Version]
	case Kadm5Found:
		return map[Kadm5Code]int{Kadm5Ok: 1}[u.Code]
	case SampleChoice:
		return map[int32]int{1: 1, SampleLimit: 1, 2: 2}[u.Which]
	}
	return -1
}

// limits are the upper limits that the .x files set, by the name of the field that has them.
var limits = map[string]int{"Body": MaxAuth, "Few": SampleOctal, "Word": SampleLimit, "Numbers": 4, "Digests": 3, "Table": 3}

// fill sets v to a random value, in the form that Decode gives it: lists without elements are nil,
// opaque data never is, and what does not count in a union or an absent optional is zero.
func fill(t *rapid.T, v reflect.Value, name string) {
	limit := func(most int) int {
		if n, ok := limits[name]; ok {
			return min(n, most)
		}
		return most
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, name))
	case reflect.Int32:
		v.SetInt(int64(rapid.Int32().Draw(t, name)))
	case reflect.Int64:
		v.SetInt(rapid.Int64().Draw(t, name))
	case reflect.Uint32:
		v.SetUint(uint64(rapid.Uint32().Draw(t, name)))
	case reflect.Uint64:
		v.SetUint(rapid.Uint64().Draw(t, name))
	case reflect.Array:
		for i := range v.Len() {
			if v.Type().Elem().Kind() == reflect.Uint8 {
				v.Index(i).SetUint(uint64(rapid.Byte().Draw(t, name)))
			} else {
				fill(t, v.Index(i), name)
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes(rapid.SliceOfN(rapid.Byte(), 0, limit(9)).Draw(t, name))
			return
		}
		if n := rapid.IntRange(0, limit(2)).Draw(t, name); n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
			for i := range n {
				fill(t, v.Index(i), name)
			}
		}
	case reflect.String:
		v.SetString(string(rapid.SliceOfN(rapid.Byte(), 0, limit(9)).Draw(t, name)))
	case reflect.Struct:
		switch u := v.Addr().Interface().(type) {
		case *Reply:
			u.Stat = rapid.SampledFrom([]ReplyStat{ReplyAccepted, ReplyDenied}).Draw(t, name)
		case *Denied:
			u.Stat = rapid.SampledFrom([]RejectStat{RejectRPCMismatch, RejectAuthError}).Draw(t, name)
		case *Acceptance:
			u.Stat = rapid.SampledFrom([]AcceptStat{AcceptSuccess, AcceptProgMismatch, AcceptSystemErr, 77}).Draw(t, name)
		case *Handle:
			u.HandleType = rapid.SampledFrom([]HandleType{HandleSecCtx, HandleCred, 2, -1}).Draw(t, name)
		case *Kadm5Name:
			u.Absent = rapid.SampledFrom([]int32{0, 1, 7}).Draw(t, name)
		case *Kadm5TaggedData:
			u.Absent = 1
		case *Kadm5Key:
			u.Version = rapid.SampledFrom([]int32{1, 2}).Draw(t, name)
		case *Kadm5Found:
			u.Code = rapid.SampledFrom([]Kadm5Code{Kadm5Ok, Kadm5PassTooSoon, -1}).Draw(t, name)
		case *SampleChoice:
			u.Which = rapid.SampledFrom([]int32{1, 2, SampleLimit, -3}).Draw(t, name)
		}
		if arm := armOf(v); arm >= 0 {
			if arm > 0 {
				fill(t, v.Field(arm), v.Type().Field(arm).Name)
			}
			return
		}
		if isOptional(v.Type()) {
			if rapid.Bool().Draw(t, name) {
				v.Field(0).SetBool(true)
				fill(t, v.Field(1), name)
			}
			return
		}
		for i := range v.NumField() {
			fill(t, v.Field(i), v.Type().Field(i).Name)
		}
	default:
		t.Fatalf("%s: no random values for %s", name, v.Type())
	}
}

// record is one captured RPC record, without its mark.
type record struct {
	name  string
	proc  Proc // of the call, or of the call that a reply answers
	reply bool
	data  []byte
}

// records reads all captured traffic: of the client plugin with the C daemon (captures/*.jsonl, a
// JSON object per line) and of the Linux kernel with it (kernel/*/*.bin, one record each).
func records(tb testing.TB) []record {
	tb.Helper()
	var all []record
	add := func(name string, call, reply []byte) {
		proc := Proc(binary.BigEndian.Uint32(call[24:]))
		for i, b := range [][]byte{call, reply} {
			if mark := binary.BigEndian.Uint32(b); mark != 1<<31|uint32(len(b)-4) {
				tb.Fatalf("%s: record mark %#x on %d bytes", name, mark, len(b))
			}
			all = append(all, record{name + map[int]string{0: "/call", 1: "/reply"}[i], proc, i == 1, b[4:]})
		}
	}
	files, err := filepath.Glob("../testdata/captures/*.jsonl")
	if err != nil || len(files) == 0 {
		tb.Fatalf("no captures: %v", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			tb.Fatal(err)
		}
		for i, line := range bytes.Split(bytes.TrimSpace(b), []byte("\n")) {
			var x struct{ Call, Reply string }
			if err := json.Unmarshal(line, &x); err != nil {
				tb.Fatalf("%s:%d: %v", file, i+1, err)
			}
			if x.Call == "" {
				continue // a mark between two test programs
			}
			call, err1 := hex.DecodeString(x.Call)
			reply, err2 := hex.DecodeString(x.Reply)
			if err1 != nil || err2 != nil {
				tb.Fatalf("%s:%d: %v %v", file, i+1, err1, err2)
			}
			add(filepath.Base(file)+"/"+Proc(binary.BigEndian.Uint32(call[24:])).String(), call, reply)
		}
	}
	files, err = filepath.Glob("../testdata/kernel/*/*.bin") // NNNN-c1-req.bin, then its NNNN-c1-rep.bin
	if err != nil || len(files) == 0 || len(files)%2 != 0 {
		tb.Fatalf("%d kernel records: %v", len(files), err)
	}
	for i := 0; i < len(files); i += 2 {
		call, err1 := os.ReadFile(files[i])
		reply, err2 := os.ReadFile(files[i+1])
		if err1 != nil || err2 != nil {
			tb.Fatal(err1, err2)
		}
		add(strings.TrimPrefix(files[i], "../testdata/"), call, reply)
	}
	return all
}
