package xdr

import (
	"bytes"
	"fmt"
	"reflect"
	"testing"

	xdr2 "github.com/davecgh/go-xdr/xdr2"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// The protocol a second time, as Go types for a codec that works by reflection: written from the
// description of the wire, not from gss_proxy.x. That codec has no optional data, which is a list
// of at most one element on the wire, and no unions.
type (
	wOID    = []byte
	wOption struct{ Option, Value []byte }

	wMechAttr struct {
		Attr                      wOID
		Name, ShortDesc, LongDesc []byte
		Extensions                []wOption
	}
	wMechInfo struct {
		Mech                                                             wOID
		NameTypes, MechAttrs, KnownMechAttrs, CredOptions, SecCtxOptions []wOID
		SaslnameSaslMechName, SaslnameMechName, SaslnameMechDesc         []byte
		Extensions                                                       []wOption
	}
	wNameAttr struct {
		Attr, Value []byte
		Extensions  []wOption
	}
	wStatus struct {
		MajorStatus                                     uint64
		Mech                                            wOID
		MinorStatus                                     uint64
		MajorStatusString, MinorStatusString, ServerCtx []byte
		Options                                         []wOption
	}
	wCallCtx struct {
		Locale, ServerCtx []byte
		Options           []wOption
	}
	wName struct {
		DisplayName                         []byte
		NameType                            wOID
		ExportedName, ExportedCompositeName []byte
		NameAttributes                      []wNameAttr
		Extensions                          []wOption
	}
	wCredElement struct {
		MN                                wName
		Mech                              wOID
		CredUsage                         int32
		InitiatorTimeRec, AcceptorTimeRec uint64
		Options                           []wOption
	}
	wCred struct {
		DesiredName         wName
		Elements            []wCredElement
		CredHandleReference []byte
		NeedsRelease        bool
	}
	wCtx struct {
		ExportedContextToken, State []byte
		NeedsRelease                bool
		Mech                        wOID
		SrcName, TargName           wName
		Lifetime, CtxFlags          uint64
		LocallyInitiated, Open      bool
		Options                     []wOption
	}
	wCB struct {
		InitiatorAddrtype uint64
		InitiatorAddress  []byte
		AcceptorAddrtype  uint64
		AcceptorAddress   []byte
		ApplicationData   []byte
	}
	wAuth struct {
		Flavor int32
		Body   []byte
	}
	wScalars struct {
		I      int32
		U, Ui  uint32
		H      int64
		Uh     uint64
		B      bool
		Colour int32
	}
)

// wire has the messages without unions; the names of fields are compared too.
var wire = map[string]any{
	"ArgIndicateMechs": struct{ CallCtx wCallCtx }{},
	"ResIndicateMechs": struct {
		Status              wStatus
		Mechs               []wMechInfo
		MechAttrDescs       []wMechAttr
		SupportedExtensions [][]byte
		Extensions          []wOption
	}{},
	"ArgGetCallContext": struct {
		CallCtx wCallCtx
		Options []wOption
	}{},
	"ResGetCallContext": struct {
		Status        wStatus
		ServerCallCtx []byte
		Options       []wOption
	}{},
	"ArgImportAndCanonName": struct {
		CallCtx        wCallCtx
		InputName      wName
		Mech           wOID
		NameAttributes []wNameAttr
		Options        []wOption
	}{},
	"ResImportAndCanonName": struct {
		Status     wStatus
		OutputName []wName
		Options    []wOption
	}{},
	"ArgExportCred": struct {
		CallCtx         wCallCtx
		InputCredHandle wCred
		CredUsage       int32
		Options         []wOption
	}{},
	"ResExportCred": struct {
		Status         wStatus
		UsageExported  int32
		ExportedHandle [][]byte
		Options        []wOption
	}{},
	"ArgImportCred": struct {
		CallCtx        wCallCtx
		ExportedHandle []byte
		Options        []wOption
	}{},
	"ResImportCred": struct {
		Status           wStatus
		OutputCredHandle []wCred
		Options          []wOption
	}{},
	"ArgAcquireCred": struct {
		CallCtx                           wCallCtx
		InputCredHandle                   []wCred
		AddCredToInputHandle              bool
		DesiredName                       []wName
		TimeReq                           uint64
		DesiredMechs                      []wOID
		CredUsage                         int32
		InitiatorTimeReq, AcceptorTimeReq uint64
		Options                           []wOption
	}{},
	"ResAcquireCred": struct {
		Status           wStatus
		OutputCredHandle []wCred
		Options          []wOption
	}{},
	"ArgStoreCred": struct {
		CallCtx                    wCallCtx
		InputCredHandle            wCred
		CredUsage                  int32
		DesiredMech                wOID
		OverwriteCred, DefaultCred bool
		Options                    []wOption
	}{},
	"ResStoreCred": struct {
		Status          wStatus
		ElementsStored  []wOID
		CredUsageStored int32
		Options         []wOption
	}{},
	"ArgInitSecContext": struct {
		CallCtx           wCallCtx
		ContextHandle     []wCtx
		CredHandle        []wCred
		TargetName        []wName
		MechType          wOID
		ReqFlags, TimeReq uint64
		InputCB           []wCB
		InputToken        [][]byte
		Options           []wOption
	}{},
	"ResInitSecContext": struct {
		Status        wStatus
		ContextHandle []wCtx
		OutputToken   [][]byte
		Options       []wOption
	}{},
	"ArgAcceptSecContext": struct {
		CallCtx       wCallCtx
		ContextHandle []wCtx
		CredHandle    []wCred
		InputToken    []byte
		InputCB       []wCB
		RetDelegCred  bool
		Options       []wOption
	}{},
	"ResAcceptSecContext": struct {
		Status              wStatus
		ContextHandle       []wCtx
		OutputToken         [][]byte
		DelegatedCredHandle []wCred
		Options             []wOption
	}{},
	"ResReleaseHandle": struct{ Status wStatus }{},
	"ArgGetMic": struct {
		CallCtx       wCallCtx
		ContextHandle wCtx
		QopReq        uint64
		MessageBuffer []byte
	}{},
	"ResGetMic": struct {
		Status        wStatus
		ContextHandle []wCtx
		TokenBuffer   []byte
		QopState      []uint64
	}{},
	"ArgVerifyMic": struct {
		CallCtx                    wCallCtx
		ContextHandle              wCtx
		MessageBuffer, TokenBuffer []byte
	}{},
	"ResVerifyMic": struct {
		Status        wStatus
		ContextHandle []wCtx
		QopState      []uint64
	}{},
	"ArgWrap": struct {
		CallCtx       wCallCtx
		ContextHandle wCtx
		ConfReq       bool
		MessageBuffer [][]byte
		QopState      uint64
	}{},
	"ResWrap": struct {
		Status        wStatus
		ContextHandle []wCtx
		TokenBuffer   [][]byte
		ConfState     []bool
		QopState      []uint64
	}{},
	"ArgUnwrap": struct {
		CallCtx       wCallCtx
		ContextHandle wCtx
		TokenBuffer   [][]byte
		QopState      uint64
	}{},
	"ResUnwrap": struct {
		Status        wStatus
		ContextHandle []wCtx
		MessageBuffer [][]byte
		ConfState     []bool
		QopState      []uint64
	}{},
	"ArgWrapSizeLimit": struct {
		CallCtx                 wCallCtx
		ContextHandle           wCtx
		ConfReq                 bool
		QopState, ReqOutputSize uint64
	}{},
	"ResWrapSizeLimit": struct {
		Status       wStatus
		MaxInputSize uint64
	}{},
	"CallHeader": struct {
		XID                                     uint32
		MsgType                                 int32
		RPCVersion, Program, Version, Procedure uint32
		Cred, Verf                              wAuth
	}{},
	"PodsRegistration":  wRegistration{},
	"PodsAnswer":        struct{ Error []byte }{},
	"PodsRegistrations": struct{ All []wRegistration }{},
	"GSSCred": struct {
		Version   uint32
		Procedure int32
		Seq       uint32
		Service   int32
		Handle    []byte
	}{},
	"GSSInit": struct{ Token []byte }{},
	"GSSInitResult": struct {
		Handle               []byte
		Major, Minor, Window uint32
		Token                []byte
	}{},
	"GSSPrivate": struct{ Token []byte }{},
	"Kadm5Init":  struct{ API uint32 }{},
	"Kadm5GetPrincipal": struct {
		API       uint32
		Principal []byte
		Mask      uint32
	}{},
	"Kadm5ChangePassword": struct {
		API       uint32
		Principal []byte
		KeepOld   bool
		Keys      []struct{ Enctype, SaltType int32 }
		Password  []byte
	}{},
	"Kadm5PurgeKeys": struct {
		API       uint32
		Principal []byte
		KeepKVNO  int32
	}{},
	"Kadm5Result": struct {
		API  uint32
		Code int32
	}{},
	"SampleScalars": wScalars{},
	"Cred":          wCred{},
}

type wRegistration struct {
	Volume                                  struct{ Pod, Handle []byte }
	Namespace, ServiceAccount, Name, Target []byte
}

// pieces decodes a message with the other codec, into the parts between its unions.
func pieces(name string, b []byte) (parts []any, err error) {
	d := xdr2.NewDecoder(bytes.NewReader(b))
	read := func(part any) {
		if err == nil {
			_, err = d.Decode(part)
			parts = append(parts, part)
		}
	}
	var tag int32
	switch name {
	case "ArgReleaseHandle":
		read(new(wCallCtx))
		switch read(&tag); tag {
		case 0:
			read(new(wCtx))
		case 1:
			read(new(wCred))
		default:
			read(new([]byte))
		}
	case "ReplyHeader":
		read(new(uint32))
		read(new(int32))
		var stat int32
		if read(&tag); tag == 0 {
			read(new(wAuth))
			if read(&stat); stat == 2 {
				read(new([2]uint32))
			}
		} else if read(&stat); stat == 0 {
			read(new([2]uint32))
		} else {
			read(new(int32))
		}
	case "Kadm5PrincipalResult":
		read(new(uint32))
		if read(&tag); tag != 0 {
			break
		}
		read(new(struct {
			Principal                                  []byte
			Expires, Changed, PasswordExpires, MaxLife uint32
		}))
		var absent int32
		if read(&absent); absent == 0 {
			read(new([]byte))
		}
		read(new(struct {
			Modified, Attributes, KVNO, MasterKVNO uint32
			Policy                                 []byte
			Others                                 [5]uint32
			KeyCount, TaggedCount, NoTaggedData    int32
		}))
		var n uint32
		read(&n)
		for range n {
			version := new(int32)
			if read(version); *version == 1 {
				read(new([2]int32))
			} else {
				read(new([3]int32))
			}
		}
	case "SampleMessage":
		read(new(struct {
			Any, Few, Text []byte
			Digest         [5]byte
			Table          [2][][5]byte
			Numbers        []int32
			Pair           [2]int64
			Colour         []int32
			Digests        [][][5]byte
		}))
		choice := func() {
			which := new(int32)
			switch read(which); *which {
			case 1, 16:
				read(new(wScalars))
			case 2:
				read(new([]byte))
			}
		}
		var n, set uint32
		read(&n)
		for range n {
			choice()
		}
		if read(&set); set == 1 {
			choice()
		}
	default:
		m, ok := wire[name]
		if !ok {
			return nil, fmt.Errorf("no description of %s", name)
		}
		read(reflect.New(reflect.TypeOf(m)).Interface())
	}
	return parts, err
}

// leaf is one value in a message; the same for both codecs.
type leaf struct {
	Path  string
	Value any
}

// leaves lists the values in v in the order of the wire. An optional counts as a list.
func leaves(all []leaf, path string, v reflect.Value) []leaf {
	switch v.Kind() {
	case reflect.Pointer:
		return leaves(all, path, v.Elem())
	case reflect.Struct:
		if isOptional(v.Type()) {
			if !v.Field(0).Bool() {
				return append(all, leaf{path, 0})
			}
			return leaves(append(all, leaf{path, 1}), path+"[0]", v.Field(1))
		}
		if arm := armOf(v); arm >= 0 {
			all = leaves(all, path, v.Field(0))
			if arm > 0 {
				all = leaves(all, path, v.Field(arm))
			}
			return all
		}
		for i := range v.NumField() {
			all = leaves(all, path+"."+v.Type().Field(i).Name, v.Field(i))
		}
		return all
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return append(all, leaf{path, fmt.Sprintf("%x", v.Interface())})
		}
		if v.Kind() == reflect.Slice {
			all = append(all, leaf{path, v.Len()})
		}
		for i := range v.Len() {
			all = leaves(all, fmt.Sprintf("%s[%d]", path, i), v.Index(i))
		}
		return all
	case reflect.String:
		return append(all, leaf{path, fmt.Sprintf("%x", v.String())})
	case reflect.Int32, reflect.Int64:
		return append(all, leaf{path, int(v.Int())})
	case reflect.Uint32, reflect.Uint64:
		return append(all, leaf{path, int(v.Uint())})
	}
	return append(all, leaf{path, v.Interface()})
}

// Random values of every message: what is encoded here decodes there to the same values, what is
// encoded there decodes here.
func TestOracle(t *testing.T) {
	for _, kind := range kinds() {
		t.Run(kind.Name(), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				m := newMessage(kind)
				fill(t, reflect.ValueOf(m).Elem(), "")
				b := m.Append(nil)
				if len(b)%4 != 0 {
					t.Fatalf("%d bytes", len(b))
				}

				parts, err := pieces(kind.Name(), b)
				if err != nil {
					t.Fatalf("the other codec: %v\n%x\n%+v", err, b, m)
				}
				want := leaves(nil, "", reflect.ValueOf(m))
				var got []leaf
				var back bytes.Buffer
				for _, part := range parts {
					got = leaves(got, "", reflect.ValueOf(part))
					if _, err := xdr2.Marshal(&back, reflect.ValueOf(part).Elem().Interface()); err != nil {
						t.Fatal(err)
					}
				}
				if len(parts) > 1 { // unions tear the paths
					for _, l := range [][]leaf{got, want} {
						for i := range l {
							l[i].Path = ""
						}
					}
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("the other codec differs (-here +there):\n%s", diff)
				}
				if !bytes.Equal(back.Bytes(), b) {
					t.Fatalf("the other codec encodes to\n%x\nnot\n%x", back.Bytes(), b)
				}

				// A used target must not shine through.
				again := newMessage(kind)
				fill(t, reflect.ValueOf(again).Elem(), "")
				d := NewDecoder(back.Bytes())
				again.Decode(d)
				if d.Err() != nil || d.Remaining() != 0 {
					t.Fatalf("%v, %d bytes left", d.Err(), d.Remaining())
				}
				if diff := cmp.Diff(m, again); diff != "" {
					t.Fatalf("(-encoded +decoded)\n%s", diff)
				}
			})
		})
	}
}
