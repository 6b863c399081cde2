package mech

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"gssproxyd/mech/reason"
)

func TestOID(t *testing.T) {
	for oid, want := range map[OID]string{
		KRB5: "1.2.840.113554.1.2.2", KRB5Old: "1.3.5.1.5.2", KRB5Wrong: "1.2.840.48018.1.2.2", IAKERB: "1.3.6.1.5.2.5", SPNEGO: "1.3.6.1.5.5.2",
		NTUserName: "1.2.840.113554.1.2.1.1", NTMachineUID: "1.2.840.113554.1.2.1.2", NTStringUID: "1.2.840.113554.1.2.1.3", NTHostbased: "1.2.840.113554.1.2.1.4",
		NTHostbasedX: "1.3.6.1.5.6.2", NTAnonymous: "1.3.6.1.5.6.3", NTExportName: "1.3.6.1.5.6.4", NTCompositeExport: "1.3.6.1.5.6.6",
		NTKrb5Principal: "1.2.840.113554.1.2.2.1", NTKrb5PrincipalPointer: "1.2.840.113554.1.2.2.2", NTKrb5Enterprise: "1.2.840.113554.1.2.2.6", NTKrb5X509: "1.2.840.113554.1.2.2.7",
		"":             "",
		"\x00":         "0.0",
		"\x27":         "0.39",
		"\x50":         "2.0",
		"\x88\x37":     "2.999",
		"\x2a\x80\x01": "invalid:2a8001",
		"\x2a\x86":     "invalid:2a86",
		"\x2a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f": "invalid:2affffffffffffffffff7f",
		OID(strings.Repeat("\x2a", 127)):               "1.2" + strings.Repeat(".42", 126),
		OID(strings.Repeat("\x2a", 128)):               "invalid:" + strings.Repeat("2a", 127) + "...",
		OID(strings.Repeat("\x2a", 1<<20)):             "invalid:" + strings.Repeat("2a", 127) + "...",
	} {
		if got := oid.String(); got != want {
			t.Errorf("%x: %s, want %s", string(oid), got, want)
		}
	}
}

func TestMechanism(t *testing.T) {
	for oid, want := range map[OID]string{
		IAKERB: "IAKERB (1.3.6.1.5.2.5)",
		"\x2b\x06\x01\x04\x01\x82\x37\x02\x02\x0a": "NTLM (1.3.6.1.4.1.311.2.2.10)",
		"\x2a\x03": "1.2.3", "\x2a\x80\x01": "invalid:2a8001", "": "",
	} {
		if got := oid.Mechanism(); got != want {
			t.Errorf("%x: %s, want %s", string(oid), got, want)
		}
	}
}

func TestMajorText(t *testing.T) {
	const invalid = "An invalid status code was supplied"
	for m, want := range map[Major]string{
		Complete:                  "The routine completed successfully",
		ContinueNeeded:            "The routine must be called again to complete its function",
		Failure:                   "Unspecified GSS failure.  Minor code may provide more information",
		BadSig:                    "A token had an invalid Message Integrity Check (MIC)",
		BadMech | 1<<24 | 1:       "A required input parameter could not be read, An unsupported mechanism was requested, The routine must be called again to complete its function",
		OldToken | DuplicateToken: "The token was a duplicate of an earlier token, The token's validity period has expired",
		Major(0xff) << 16:         invalid,
		Major(4)<<24 | Failure:    invalid + ", Unspecified GSS failure.  Minor code may provide more information",
		CallBadStructure | 1<<15:  "A parameter was malformed, " + invalid,
	} {
		if got := m.Text(); got != want {
			t.Errorf("%#x: %q, want %q", uint32(m), got, want)
		}
	}
	m := CallBadStructure | DefectiveToken | GapToken
	if m.Routine() != DefectiveToken || !m.Failed() || GapToken.Failed() {
		t.Error("a major status does not come apart")
	}
}

func TestMinorText(t *testing.T) {
	for minor, want := range map[uint32]string{
		0:               "",
		2:               "No such file or directory",
		22:              "Invalid argument",
		200:             "Unknown error 200",
		KRB5Minor(34):   "Request is a replay",
		2529638946:      "Request is a replay",
		KRB5Minor(37):   "Clock skew too great",
		KRB5Minor(95):   "KRB5 error code 95",
		KRB5Minor(255):  "Tracing unsupported",
		MinorK5G + 1:    "No principal in keytab matches desired name",
		MinorK5G + 17:   "Unknown code k5g 17",
		MinorGGSS + 12:  "Token header is malformed or corrupt",
		MinorASN1 + 5:   "ASN.1 encoding ended unexpectedly",
		MinorKV5M + 1:   "Bad magic number for krb5_principal structure",
		MinorProf + 14:  "Syntax error in profile section header",
		MinorKRB5 + 256: "Unknown code krb6 0",
		5000:            "Unknown code S 136",
		123456789:       "Unknown code A0uM 21",
	} {
		if got := MinorText(minor); got != want {
			t.Errorf("%d: %q, want %q", minor, got, want)
		}
	}
}

func TestError(t *testing.T) {
	for _, tt := range []struct {
		e    Error
		want string
	}{
		{Error{Major: Failure, Minor: KRB5Minor(34), Reason: reason.Replay}, "[replay] Request is a replay"},
		{Error{Major: Failure, Minor: KRB5Minor(34), Text: "seen at noon", Reason: reason.Replay}, "[replay] seen at noon"},
		{Error{Major: BadMech}, "An unsupported mechanism was requested"},
	} {
		var err error = &tt.e
		if err.Error() != tt.want {
			t.Errorf("%q, want %q", err, tt.want)
		}
		var e *Error
		if !errors.As(fmt.Errorf("accept: %w", err), &e) || e.Major != tt.e.Major {
			t.Error("the status is lost in a wrapped error")
		}
	}
}

func TestReasonOf(t *testing.T) {
	replay := &Error{Major: Failure, Reason: reason.Replay}
	wrapped := fmt.Errorf("accept: %w", replay)
	for _, err := range []error{replay, wrapped, errors.Join(errors.New("another"), wrapped)} {
		if ReasonOf(err) != reason.Replay || !errors.Is(err, reason.Replay) || errors.Is(err, reason.ClockSkew) || errors.Is(err, reason.ID("")) {
			t.Errorf("%v: reason %q", err, ReasonOf(err))
		}
	}
	// What has no reason has none, which is nobody's.
	for _, err := range []error{nil, errors.New("replay"), &Error{Major: Failure}} {
		if ReasonOf(err) != "" || errors.Is(err, reason.Replay) || errors.Is(err, reason.ID("")) {
			t.Errorf("%v: reason %q", err, ReasonOf(err))
		}
	}
}

func TestExportedName(t *testing.T) {
	b := AppendExportedName([]byte("x"), KRB5, "alice@EXAMPLE.TEST")
	want := "x\x04\x01\x00\x0b\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02\x00\x00\x00\x12alice@EXAMPLE.TEST"
	if string(b) != want {
		t.Fatalf("%q, want %q", b, want)
	}
	c := AppendCompositeName(nil, KRB5, "alice@EXAMPLE.TEST", []byte("attrs"))
	if string(c) != "\x04\x02"+want[3:]+"\x00\x00\x00\x05attrs" {
		t.Fatalf("composite %q", c)
	}
	for _, token := range [][]byte{b[1:], c, AppendCompositeName(nil, KRB5, "alice@EXAMPLE.TEST", nil)} {
		oid, name, err := ParseExportedName(token)
		if oid != KRB5 || name != "alice@EXAMPLE.TEST" || err != nil {
			t.Errorf("%q: %v, %q, %v", token, oid, name, err)
		}
		for n := range token {
			if _, _, err := ParseExportedName(token[:n]); err == nil {
				t.Errorf("%q parses", token[:n])
			}
		}
		if _, _, err := ParseExportedName(append(bytes.Clone(token), 0)); err == nil {
			t.Error("an octet behind the token is overlooked")
		}
	}
	for _, change := range []struct {
		at int
		to byte
	}{{0, 5}, {1, 3}, {2, 1}, {3, 12}, {4, 5}, {5, 8}, {15, 1}, {18, 19}} {
		bad := bytes.Clone(b[1:])
		bad[change.at] = change.to
		if _, _, err := ParseExportedName(bad); err == nil {
			t.Errorf("octet %d = %d parses", change.at, change.to)
		}
	}
}

func FuzzParseExportedName(f *testing.F) {
	f.Add(AppendExportedName(nil, KRB5, "alice@R"))
	f.Add(AppendCompositeName(nil, SPNEGO, "", []byte{1, 2, 3}))
	f.Add([]byte{4, 1, 0, 3, 6, 1, 0, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		oid, name, err := ParseExportedName(b)
		if err != nil {
			return
		}
		_ = oid.String()
		again := AppendExportedName(nil, oid, name)
		if b[1] == 1 && !bytes.Equal(again, b) {
			t.Fatalf("%x comes back as %x", b, again)
		}
		if o, n, err := ParseExportedName(again); o != oid || n != name || err != nil {
			t.Fatalf("%x: %v %q %v", again, o, n, err)
		}
	})
}

// What is put before a text depends on the format, and not on what a peer has sent.
func TestErrorf(t *testing.T) {
	skew := KRB5Minor(37)
	words := MinorText(skew)
	for _, test := range []struct {
		minor        uint32
		format, want string
		args         []any
	}{
		{skew, "", words, nil},
		{skew, ": %ds ahead", words + ": 7s ahead", []any{7}},
		{skew, ": %s", words, []any{""}},
		{skew, "%s", ": sent", []any{": sent"}},
		{skew, "alone", "alone", nil},
		{0, ": %s", "no table", []any{"no table"}},
		{0, "", "", nil},
	} {
		e := Errorf(Failure, test.minor, "x", test.format, test.args...)
		if e.Text != test.want || e.Mech != KRB5 || e.Minor != test.minor || e.Of(SPNEGO).Mech != SPNEGO {
			t.Errorf("%q, %q: %+v, want the text %q", test.format, test.args, e, test.want)
		}
	}
}
