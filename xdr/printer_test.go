package xdr

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What the kernel asks and what it is told, on paper.
func TestPrint(t *testing.T) {
	want := map[string]string{
		"kernel/1-accept-6.1/0007-c1-req.bin/call": `xid: 3349136410
msg_type: CALL
rpc_version: 2
program: 400112
version: 1
procedure: 9
cred.flavor: NONE
cred.body: 0 bytes
verf.flavor: NONE
verf.body: 0 bytes
call_ctx.locale: ""
call_ctx.server_ctx: 0 bytes
call_ctx.options: 2 items
call_ctx.options[0].option: "exported_context_type"
call_ctx.options[0].value: "linux_lucid_v1"
call_ctx.options[1].option: "exported_creds_type"
call_ctx.options[1].value: "linux_creds_v1"
context_handle: absent
cred_handle: absent
input_token: 771 bytes
input_cb: absent
ret_deleg_cred: false
options: 0 items
`,
		"kernel/3-wrong-key-6.1/0003-c1-req.bin/reply": `xid: 3952759469
msg_type: REPLY
reply.stat: ACCEPTED
reply.accepted.verf.flavor: NONE
reply.accepted.verf.body: 0 bytes
reply.accepted.outcome.stat: SUCCESS
status.major_status: 0xd0000 FAILURE
status.mech: none
status.minor_status: 2529638943 (-1765328353)
status.major_status_string: "Unspecified GSS failure.  Minor code may provide more information"
status.minor_status_string: "Request ticket server nfs/nfs-vm.nfsvm.test@NFSVM.TEST kvno 1 enctype aes256-cts found in keytab but cannot decrypt ticket"
status.server_ctx: 0 bytes
status.options: 0 items
context_handle: absent
output_token: absent
delegated_cred_handle: absent
options: 0 items
`,
		"kernel/1-accept-6.1/0007-c1-req.bin/reply": `xid: 3349136410
msg_type: REPLY
reply.stat: ACCEPTED
reply.accepted.verf.flavor: NONE
reply.accepted.verf.body: 0 bytes
reply.accepted.outcome.stat: SUCCESS
status.major_status: COMPLETE
status.mech: 1.2.840.113554.1.2.2
status.minor_status: 0
status.major_status_string: ""
status.minor_status_string: ""
status.server_ctx: 0 bytes
status.options: 0 items
context_handle.exported_context_token: 52 bytes
context_handle.state: 0 bytes
context_handle.needs_release: false
context_handle.mech: 1.2.840.113554.1.2.2
context_handle.src_name.display_name: "host/nfs-vm.nfsvm.test@NFSVM.TEST"
context_handle.src_name.name_type: 1.2.840.113554.1.2.2.1
context_handle.src_name.exported_name: 0401000b06092a864886f71201020200000021686f73742f6e66732d766d2e6e6673766d2e74657374404e4653564d2e54455354
context_handle.src_name.exported_composite_name: ""
context_handle.src_name.name_attributes: 0 items
context_handle.src_name.extensions: 0 items
context_handle.targ_name.display_name: "nfs/nfs-vm.nfsvm.test@NFSVM.TEST"
context_handle.targ_name.name_type: 1.2.840.113554.1.2.2.1
context_handle.targ_name.exported_name: 0401000b06092a864886f712010202000000206e66732f6e66732d766d2e6e6673766d2e74657374404e4653564d2e54455354
context_handle.targ_name.exported_composite_name: ""
context_handle.targ_name.name_attributes: 0 items
context_handle.targ_name.extensions: 0 items
context_handle.lifetime: 36298 s
context_handle.ctx_flags: 0x1b2 mutual confidentiality integrity prot-ready transferable
context_handle.locally_initiated: false
context_handle.open: true
context_handle.options: 0 items
output_token: 156 bytes
delegated_cred_handle: absent
options: 1 item
options[0].option: "linux_creds_v1"
options[0].value: 12 bytes
`,
	}
	for _, r := range records(t) {
		lines, ok := want[r.name]
		if !ok {
			continue
		}
		header, body, err := decodeRecord(&r, r.data)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(lines, Sprint(header)+Sprint(body)); diff != "" {
			t.Errorf("%s (-want +got)\n%s", r.name, diff)
		}
		delete(want, r.name)
	}
	if len(want) != 0 {
		t.Errorf("records are missing: %v", want)
	}
}

// secretFields are the fields whose bytes must never be seen; anything with such a name anywhere in
// a message.
var secretFields = map[string]bool{
	"ExportedContextToken": true, "State": true, "CredHandleReference": true, "ExportedHandle": true, "ServerCtx": true,
	"ServerCallCtx": true, "InputToken": true, "OutputToken": true, "TokenBuffer": true, "MessageBuffer": true, "ApplicationData": true,
	"Body": true,
}

// plant puts one element in every list and every optional, and a word of its own in all opaque
// data.
func plant(v reflect.Value, name string) {
	switch v.Kind() {
	case reflect.Slice:
		if v.Type().Elem().Kind() != reflect.Uint8 {
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			plant(v.Index(0), name)
			return
		}
		word := "open"
		if secretFields[name] {
			word = "hidden"
		}
		v.SetBytes([]byte(word))
	case reflect.Struct:
		if isOptional(v.Type()) {
			v.Field(0).SetBool(true)
			plant(v.Field(1), name)
			return
		}
		for i := range v.NumField() {
			plant(v.Field(i), v.Type().Field(i).Name)
		}
	}
}

func TestPrintHidesSecrets(t *testing.T) {
	for _, kind := range kinds() {
		if strings.HasPrefix(kind.Name(), "Sample") {
			continue
		}
		m := newMessage(kind)
		plant(reflect.ValueOf(m).Elem(), "")
		if a, ok := m.(*ArgReleaseHandle); ok {
			a.CredHandle.Extensions = []byte("hidden")
		}
		for _, tag := range []HandleType{HandleSecCtx, HandleCred, 2} {
			if a, ok := m.(*ArgReleaseHandle); ok {
				a.CredHandle.HandleType = tag
			}
			lines := Sprint(m)
			for _, word := range []string{"hidden", "68696464656e", "104, 105, 100"} {
				if strings.Contains(lines, word) {
					t.Errorf("%s shows a secret:\n%s", kind.Name(), lines)
				}
			}
			if bytes.Contains(m.Append(nil), []byte("hidden")) && !strings.Contains(lines, ": 6 bytes\n") {
				t.Errorf("%s hides even that there is a secret:\n%s", kind.Name(), lines)
			}
			if bytes.Contains(m.Append(nil), []byte("open")) && !strings.Contains(lines, `"open"`) {
				t.Errorf("%s shows nothing:\n%s", kind.Name(), lines)
			}
		}
	}
}

func TestPrintValues(t *testing.T) {
	long := bytes.Repeat([]byte("a"), shown+2)
	for _, c := range []struct {
		print func(*Printer)
		want  string
	}{
		{func(p *Printer) { p.oid("x", []byte("\x2a\x86\x48\x86\xf7\x12\x01\x02\x02")) }, "1.2.840.113554.1.2.2"},
		{func(p *Printer) { p.oid("x", []byte("\x60\x86\x48\x01\x86\xf8\x42\x03\x08\x0f\x01")) }, "2.16.840.1.113730.3.8.15.1"},
		{func(p *Printer) { p.oid("x", []byte("\x88\x37")) }, "2.999"},
		{func(p *Printer) { p.oid("x", nil) }, "none"},
		{func(p *Printer) { p.oid("x", []byte{0x2a, 0x86}) }, "not an OID: 2a86"},
		{func(p *Printer) { p.oid("x", []byte{0x2a, 0x80, 0x01}) }, "not an OID: 2a8001"},
		{func(p *Printer) { p.oid("x", bytes.Repeat([]byte{0xff}, 11)) }, "not an OID: ffffffffffffffffffffff"},
		{func(p *Printer) { p.oids("x", nil) }, "none"},
		{func(p *Printer) { p.oids("x", [][]byte{{0x2a}, {0x2b, 6}}) }, "1.2 1.3.6"},
		{func(p *Printer) { p.text("x", []byte("text\x00")) }, `"text"`},
		{func(p *Printer) { p.opaque("x", []byte("host@a.example\x00")) }, `"host@a.example\x00"`},
		{func(p *Printer) { p.opaque("x", []byte("a\nb")) }, "610a62"},
		{func(p *Printer) { p.opaque("x", []byte("\xff\x00")) }, "ff00"},
		{func(p *Printer) { p.opaque("x", long) }, `"` + string(long[:shown]) + `"... and 2 bytes more`},
		{func(p *Printer) { p.optionValue("x", []byte("default\x00")) }, `"default"`},
		{func(p *Printer) { p.optionValue("x", []byte("\x00\x00\x00\x04user")) }, "8 bytes"},
		{func(p *Printer) { p.optionValue("x", long) }, "258 bytes"},
		{func(p *Printer) { p.seconds("x", 0xffffffff) }, "indefinite"},
		{func(p *Printer) { p.seconds("x", 300) }, "300 s"},
		{func(p *Printer) { p.flags("x", 0x1b2) }, "0x1b2 mutual confidentiality integrity prot-ready transferable"},
		{func(p *Printer) { p.flags("x", 1<<40|1) }, "0x10000000001 delegation"},
		{func(p *Printer) { p.major("x", 0) }, "COMPLETE"},
		{func(p *Printer) { p.major("x", 0xd0000) }, "0xd0000 FAILURE"},
		{func(p *Printer) { p.major("x", 0x1000000|2<<16|1) }, "0x1020001 CALL_INACCESSIBLE_READ BAD_NAME CONTINUE_NEEDED"},
		{func(p *Printer) { p.minor("x", 22) }, "22"},
		{func(p *Printer) { p.minor("x", 0x96c73a1f) }, "2529638943 (-1765328353)"},
		{func(p *Printer) { p.minor("x", 1<<63) }, "9223372036854775808"},
		{func(p *Printer) { p.line("x", CredBoth.String()) }, "BOTH"},
		{func(p *Printer) { p.secret("x", []byte{1}) }, "1 byte"},
	} {
		var p Printer
		c.print(&p)
		if got := p.String(); got != "x: "+c.want+"\n" {
			t.Errorf("%q, want %q", got, "x: "+c.want+"\n")
		}
	}
}
