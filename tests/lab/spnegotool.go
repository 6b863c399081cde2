package lab

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"gssproxyd/mech"
)

// SPNEGOTool is a Tool that can also negotiate, with MIT's SPNEGO.
type SPNEGOTool struct{ *Tool }

// SPNEGOTool starts a spnegotool as user u with the variables of env, after building it where that
// was not done yet. Its initiator may offer NTLM, by a mechanism that has a first token and nothing
// more.
func (r *Realm) SPNEGOTool(u User, env ...string) (*SPNEGOTool, error) {
	program := filepath.Join(r.Dir, "spnegotool")
	conf := filepath.Join(r.Dir, "spnegomech.conf")
	r.mu.Lock()
	err := r.buildSPNEGOTool(program, conf)
	r.mu.Unlock()
	if err != nil {
		return nil, err
	}
	t := &Tool{cmd: r.Command(u, append([]string{"GSS_MECH_CONFIG=" + conf}, env...), program)}
	if t.in, err = t.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := t.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	t.cmd.Stderr = &t.err
	t.out = bufio.NewReaderSize(out, 1<<16)
	return &SPNEGOTool{t}, t.cmd.Start()
}

func (r *Realm) buildSPNEGOTool(program, conf string) error {
	if _, err := os.Stat(conf); err == nil {
		return nil
	}
	for _, name := range []string{"gsstool.c", "spnegotool.c", "spnegomech.c"} {
		b, err := fs.ReadFile(sources, "csrc/"+name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(r.Dir, name), b, 0o644); err != nil {
			return err
		}
	}
	plugin := filepath.Join(r.Dir, "spnegomech.so")
	for _, args := range [][]string{
		{"-o", program, "spnegotool.c", "-lgssapi_krb5"},
		{"-shared", "-fPIC", "-o", plugin, "spnegomech.c"},
	} {
		cmd := exec.Command("cc", append([]string{"-O2", "-Wall"}, args...)...)
		cmd.Dir = r.Dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
		}
	}
	return os.WriteFile(conf, fmt.Appendf(nil, "ntlm 1.3.6.1.4.1.311.2.2.10 %s\n", plugin), 0o644)
}

// Negotiated is how far MIT's end of a negotiation is.
type Negotiated struct {
	ID       int
	Complete bool
	Token    []byte // for the peer
	Flags    uint32
	Mech     mech.OID // when complete
	Client   string   // acceptors, when complete
}

// NegInit begins to negotiate with a hostbased service. offer lists the mechanisms, nil for MIT's
// default.
func (t *SPNEGOTool) NegInit(offer []mech.OID, target string, flags uint32) (n Negotiated, err error) {
	list := "-"
	if len(offer) > 0 {
		var s []string
		for _, m := range offer {
			s = append(s, hex.EncodeToString([]byte(m)))
		}
		list = strings.Join(s, ",")
	}
	w, err := t.call("neginit", list, target, flags)
	if err == nil {
		err = fields(w, &n.ID, new(uint32), &n.Token)
	}
	return n, err
}

// NegStep gives an initiator the acceptor's token.
func (t *SPNEGOTool) NegStep(id int, token []byte) (n Negotiated, err error) {
	var major uint32
	var m []byte
	w, err := t.call("negstep", id, token)
	if err == nil {
		err = fields(w, &major, &n.Token, &n.Flags, &m)
	}
	n.ID, n.Complete, n.Mech = id, major == 0, mech.OID(m)
	return n, err
}

// NegAccept gives an acceptor the initiator's token; id is negative for the first one.
func (t *SPNEGOTool) NegAccept(id int, token []byte) (n Negotiated, err error) {
	which := any("-")
	if id >= 0 {
		which = id
	}
	var major uint32
	var m []byte
	w, err := t.call("negaccept", which, token)
	if err == nil {
		err = fields(w, &n.ID, &major, &n.Token, &n.Flags, &m, &n.Client)
	}
	n.Complete, n.Mech = major == 0, mech.OID(m)
	return n, err
}
