// Command mutant stands between the kernel and a daemon and spoils the daemon's answers in one way,
// to show that a daemon that answers so is found out:
//
//	mutant MUTATION LISTEN-SOCKET DAEMON-SOCKET
//
// It announces itself to nfsd as a daemon does, once it listens.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"

	"gssproxyd/xdr"
)

// mutations change one thing in the answer that tells of an established context.
var mutations = map[string]func(*xdr.ResAcceptSecContext){
	"none": func(*xdr.ResAcceptSecContext) {},
	"missing-creds": func(r *xdr.ResAcceptSecContext) {
		r.Options = slices.DeleteFunc(r.Options, func(o xdr.Option) bool { return string(o.Option) == "linux_creds_v1\x00" })
	},
	// The kernel has room for 1024 bytes.
	"oversized-token": func(r *xdr.ResAcceptSecContext) {
		r.OutputToken = xdr.Some(append(slices.Clone(r.OutputToken.V), make([]byte, 1025)...))
	},
	// linux_lucid_v1: flags, end time, sequence number (8 bytes of the machine's order), enctype,
	// key.
	"sequence-2^31": func(r *xdr.ResAcceptSecContext) {
		lucid := slices.Clone(r.ContextHandle.V.ExportedContextToken)
		binary.NativeEndian.PutUint64(lucid[8:], 1<<31)
		r.ContextHandle.V.ExportedContextToken = lucid
	},
	"lucid-too-long": func(r *xdr.ResAcceptSecContext) {
		r.ContextHandle.V.ExportedContextToken = append(slices.Clone(r.ContextHandle.V.ExportedContextToken), 0, 0, 0, 0)
	},
	"lucid-too-short": func(r *xdr.ResAcceptSecContext) {
		r.ContextHandle.V.ExportedContextToken = r.ContextHandle.V.ExportedContextToken[:len(r.ContextHandle.V.ExportedContextToken)-1]
	},
}

func main() {
	err := serve(os.Args[1], os.Args[2], os.Args[3])
	fmt.Fprintln(os.Stderr, "mutant:", err)
	os.Exit(1)
}

// serve forwards until it fails.
func serve(mutation, listen, daemon string) error {
	mutate := mutations[mutation]
	if mutate == nil {
		return fmt.Errorf("no mutation %q", mutation)
	}
	os.Remove(listen)
	l, err := net.Listen("unix", listen)
	if err != nil {
		return err
	}
	go func() {
		// This blocks while the kernel ends what it had with the daemon before.
		if err := os.WriteFile("/proc/net/rpc/use-gss-proxy", []byte("1"), 0); err != nil {
			fmt.Fprintln(os.Stderr, "mutant:", err)
		}
		fmt.Println("armed")
	}()
	for {
		kernel, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer kernel.Close()
			if err := relay(mutation, mutate, kernel, daemon); err != nil {
				fmt.Fprintln(os.Stderr, "mutant:", err)
			}
		}()
	}
}

// relay forwards one connection until either side ends it.
func relay(mutation string, mutate func(*xdr.ResAcceptSecContext), kernel net.Conn, daemon string) error {
	d, err := net.Dial("unix", daemon)
	if err != nil {
		return err
	}
	defer d.Close()
	go func() {
		io.Copy(d, kernel)
		d.Close()
	}()
	for {
		reply, err := record(d)
		if err != nil {
			return err
		}
		changed, err := spoil(mutate, reply)
		if err != nil {
			return err
		}
		if changed != nil {
			fmt.Printf("spoiled: %s\n", mutation)
			reply = changed
		}
		if _, err := kernel.Write(frame(reply)); err != nil {
			return err
		}
	}
}

// spoil changes a reply that holds an established context; it returns nil for any other.
func spoil(mutate func(*xdr.ResAcceptSecContext), reply []byte) ([]byte, error) {
	d := xdr.NewDecoder(reply)
	var head xdr.ReplyHeader
	head.Decode(d)
	if d.Err() != nil || d.Remaining() == 0 {
		return nil, nil // NULL, or an error
	}
	headLen := d.Offset()
	var res xdr.ResAcceptSecContext
	res.Decode(d)
	if err := d.Err(); err != nil {
		return nil, err
	}
	if res.Status.MajorStatus != 0 || !res.ContextHandle.Set {
		return nil, nil
	}
	mutate(&res)
	return res.Append(slices.Clone(reply[:headLen])), nil
}

const maxRecord = 1 << 20

// record reads one record of record-marked RPC (RFC 5531 section 11).
func record(r io.Reader) ([]byte, error) {
	var rec []byte
	for {
		var mark [4]byte
		if _, err := io.ReadFull(r, mark[:]); err != nil {
			return nil, err
		}
		m := binary.BigEndian.Uint32(mark[:])
		n := int(m &^ (1 << 31))
		if len(rec)+n > maxRecord {
			return nil, errors.New("a record longer than 1 MiB")
		}
		fragment := make([]byte, n)
		if _, err := io.ReadFull(r, fragment); err != nil {
			return nil, err
		}
		rec = append(rec, fragment...)
		if m>>31 == 1 {
			return rec, nil
		}
	}
}

func frame(rec []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, 1<<31|uint32(len(rec))), rec...)
}
