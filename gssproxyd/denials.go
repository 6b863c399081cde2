package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/audit"
	"gssproxyd/command"
	"gssproxyd/gssproxyd/proc"
	"gssproxyd/mech/reason"
	"gssproxyd/rpc"
	"gssproxyd/rpc/peer"
	"gssproxyd/xdr"
)

// denialsCommand is gssproxyd denials: what the daemon has refused, the last of it, and what was only
// observed.
func denialsCommand(o *options) *cobra.Command {
	var last uint32
	cmd := &cobra.Command{
		Use:               "denials",
		Short:             "Show what the running daemon has refused last, and why",
		Args:              configured,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	f.Uint32VarP(&last, "last", "n", 10, "how `many`; the daemon remembers "+fmt.Sprint(maxDenials))
	return command.Answers(cmd, func(ctx context.Context, res *xdr.AdminResDenials) error {
		return o.ask(ctx, xdr.AdminProcDenials, &xdr.AdminArgDenials{Last: last}, res, &res.Error)
	}, printDenials)
}

// printDenials prints refusals for who reads.
func printDenials(w io.Writer, res *xdr.AdminResDenials) error {
	for i := range res.Denials {
		printDenial(w, &res.Denials[i])
	}
	if len(res.Denials) == 0 {
		fmt.Fprintln(w, "nothing was refused since the daemon was started")
	}
	return nil
}

// printDenial prints a refusal for who reads.
func printDenial(w io.Writer, d *xdr.AdminDenial) {
	fmt.Fprintf(w, "%s %s, reason %s, call %s\n", d.Time, d.Kind, d.Reason, d.Call)
	fmt.Fprintf(w, "  caller: %s\n", listed(append(callerPairs(&d.Caller), [][2]string{
		{"socket", d.Socket}, {"service", d.Service}, {"procedure", d.Procedure}, {"principal", d.Principal}, {"target", d.Target},
	}...)))
	fmt.Fprintf(w, "  %s\n", command.Shown(d.Text))
	for _, line := range d.Trace {
		fmt.Fprintf(w, "  considered: %s\n", command.Shown(line))
	}
	if d.Hint != "" {
		fmt.Fprintf(w, "  hint: %s\n", d.Hint)
	}
}

// callerPairs says who called.
func callerPairs(c *xdr.AdminCaller) [][2]string {
	return [][2]string{
		{"uid", fmt.Sprint(c.UID)}, {"pid", fmt.Sprint(c.PID)}, {"program", c.Program}, {"unit", c.Unit}, {"pod", c.Pod}, {"container", c.Container}, {"label", c.Label},
	}
}

// listed is what is known, in a line.
func listed(pairs [][2]string) string {
	var known []string
	for _, pair := range pairs {
		if pair[1] != "" {
			known = append(known, pair[0]+" "+command.Word(command.Shown(pair[1])))
		}
	}
	return strings.Join(known, ", ")
}

// adminDenials is procedure DENIALS.
func (d *daemon) adminDenials(_ context.Context, args *xdr.AdminArgDenials, res *xdr.AdminResDenials) error {
	room := rpc.MaxRecord - 1024 // for headers
	for _, e := range slices.Backward(d.denials.last(int(min(args.Last, maxDenials)))) {
		one := shownDenial(e)
		n := len(one.Append(nil))
		if n > room && len(res.Denials) == 0 { // there are very many services
			one.Trace = nil
			n = len(one.Append(nil))
		}
		if room -= n; room < 0 {
			break
		}
		res.Denials = append(res.Denials, one)
	}
	slices.Reverse(res.Denials)
	return nil
}

// How many refusals are remembered, of all callers.
const maxDenials = 512

// denials are the last refusals. When there is no room the oldest one of the uid that has most goes:
// who makes himself be refused often pushes his own out. Since a user may have very many uids, all
// without a reserve count as one: however many they are, who has a reserve keeps what he has as long
// as that is less than all of theirs.
type denials struct {
	mu   sync.Mutex
	list []*audit.Event // the oldest first
	held map[uint32]int
}

// add remembers an event. reserved has who has a reserve.
func (d *denials) add(e *audit.Event, reserved map[uint32]bool) {
	one := copyOf(e)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held == nil {
		d.held = make(map[uint32]int)
	}
	if len(d.list) >= maxDenials {
		d.drop(d.tooMuch(reserved))
	}
	d.list = append(d.list, one)
	d.held[one.Caller.UID]++
}

// tooMuch is which refusal goes.
func (d *denials) tooMuch(reserved map[uint32]bool) int {
	strangers, most, his := 0, 0, 0 // of all without a reserve, and of one who has one, or none
	for uid, n := range d.held {
		if reserved[uid] {
			most = max(most, n)
		} else {
			strangers += n
			his = max(his, n)
		}
	}
	favoured := most >= strangers
	if !favoured {
		most = his
	}
	return slices.IndexFunc(d.list, func(e *audit.Event) bool {
		uid := e.Caller.UID
		return reserved[uid] == favoured && d.held[uid] == most
	})
}

// copyOf is a copy of an event to remember, whose texts are not long.
func copyOf(e *audit.Event) *audit.Event {
	one := new(*e) // which is the call's, and used again
	texts := []*string{&one.Principal, &one.Target, &one.Text}
	if e.Caller != nil {
		from := new(*e.Caller)
		one.Caller = from
		texts = append(texts, &from.Program, &from.Unit, &from.Pod, &from.Container, &from.Label)
	}
	for _, s := range texts {
		*s = short(*s)
	}
	return one
}

// maxKept is how many bytes of a text that a caller may have chosen are remembered. A name may be as
// long as a record.
const maxKept = 1024

// short is s, cut if it is long, in memory of its own: what it is a part of may be long too.
func short(s string) string {
	if len(s) <= maxKept {
		return strings.Clone(s)
	}
	return strings.ToValidUTF8(s[:maxKept], "") + "…"
}

func (d *denials) drop(i int) {
	uid := d.list[i].Caller.UID
	d.list = slices.Delete(d.list, i, i+1)
	if d.held[uid]--; d.held[uid] == 0 {
		delete(d.held, uid)
	}
}

// last returns the last n refusals, the oldest first.
func (d *denials) last(n int) []*audit.Event {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.list[len(d.list)-min(n, len(d.list)):])
}

// shownDenial is a refusal as the admin program has it.
func shownDenial(e *audit.Event) xdr.AdminDenial {
	var trace []string
	if e.Trace != nil {
		trace = e.Trace()
	}
	return xdr.AdminDenial{
		Time: e.Time.Format(time.RFC3339Nano), Kind: string(e.Kind), Call: e.CallID(), Caller: shownCaller(e.Caller),
		Socket: e.Socket, Service: e.Service, Procedure: e.Procedure, Principal: e.Principal, Target: e.Target,
		Reason: e.Reason, Text: e.Text, Hint: reason.ID(e.Reason).Doc().Hint, Trace: trace,
	}
}

// shownPeer is a caller as far as it was looked at.
func shownPeer(i *peer.Info) xdr.AdminCaller {
	c := proc.CallerOf(i, i.Read())
	return shownCaller(&c)
}

func shownCaller(c *audit.Caller) xdr.AdminCaller {
	if c == nil {
		return xdr.AdminCaller{}
	}
	return xdr.AdminCaller{UID: c.UID, PID: c.PID, Program: c.Program, Unit: c.Unit, Pod: c.Pod, Container: c.Container, Label: c.Label}
}
