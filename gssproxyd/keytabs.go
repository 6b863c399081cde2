package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/command"
	"gssproxyd/conf"
	"gssproxyd/gssproxyd/creds"
	"gssproxyd/keytab"
	"gssproxyd/rpc"
	"gssproxyd/xdr"
)

// keytabsCommand is gssproxyd keytabs: the keys that the daemon has, their use, tickets that came and
// that none of them has opened, and which of them can go.
func keytabsCommand(o *options) *cobra.Command {
	var args xdr.AdminArgKeytabs
	return command.Answers(&cobra.Command{
		Use:   "keytabs [SERVICE]",
		Short: "Show the keys that the running daemon has, their use, and tickets that are for none of them",
		Args: func(_ *cobra.Command, of []string) error {
			if len(of) > 1 {
				return fmt.Errorf("keytabs takes the name of one service, not %d", len(of))
			}
			args.Service = strings.Join(of, "")
			return nil
		},
		ValidArgsFunction: completeService(o),
	}, func(ctx context.Context, res *xdr.AdminResKeytabs) error {
		return o.ask(ctx, xdr.AdminProcKeytabs, &args, res, &res.Error)
	}, printKeytabs, func(res *xdr.AdminResKeytabs) command.Status {
		if slices.ContainsFunc(res.Keytabs, func(k xdr.AdminKeytab) bool { return len(k.Drift) > 0 || k.Needed && k.Error != "" }) {
			return command.Unwell
		}
		return 0
	})
}

// printKeytabs prints how the keytabs are for who reads.
func printKeytabs(w io.Writer, res *xdr.AdminResKeytabs) error {
	now := time.Now()
	for i := range res.Keytabs {
		if i > 0 {
			fmt.Fprintln(w)
		}
		printKeytab(w, &res.Keytabs[i], now)
	}
	if len(res.Keytabs) == 0 {
		fmt.Fprintln(w, "no keytab is open")
	}
	if res.LeftOff > 0 {
		fmt.Fprintf(w, "\n%d keys and others are not shown, for want of room: name a service\n", res.LeftOff)
	}
	return nil
}

// printKeytab prints how a keytab is for who reads.
func printKeytab(w io.Writer, k *xdr.AdminKeytab, now time.Time) {
	var uses []string
	for _, u := range k.Uses {
		uses = append(uses, u.Service+" ("+u.As+")")
	}
	fmt.Fprintf(w, "%s: of %s\n", k.Source, strings.Join(uses, ", "))
	if k.Error != "" && keytab.InStore(k.Source) {
		fmt.Fprintf(w, "  %s\n", k.Error)
	} else if k.Error != "" {
		fmt.Fprintf(w, "  the file cannot be used as it now is: %s\n", k.Error)
	}
	if len(k.Keys) > 0 {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "  PRINCIPAL\tKVNO\tENCTYPE\tAGE\tACCEPTED\tINITIATED\tPRUNE")
		for _, key := range k.Keys {
			prune := key.Prune
			if key.Pending {
				prune = "pending: it accepts, and the KDC may not have it yet"
			}
			if key.Why != "" {
				prune += ": " + key.Why
			}
			fmt.Fprintf(t, "  %s\t%d\t%s\t%s\t%s\t%s\t%s\n", key.Principal, key.KVNO, key.Enctype, age(key.Written, now, ""), age(key.Accepted, now, " ago"), age(key.Initiated, now, " ago"), prune)
		}
		t.Flush()
	}
	if k.Skipped > 0 {
		fmt.Fprintf(w, "  entries without a usable key: %d\n", k.Skipped)
	}
	for _, d := range k.Drift {
		fmt.Fprintf(w, "  DRIFT: %d refused, the last %s, with tickets for %s kvno %d %s: %s\n", d.Times, age(d.Last, now, " ago"), d.Principal, d.KVNO, d.Enctype, d.Text)
	}
	if k.Others > 0 {
		fmt.Fprintf(w, "  refused with tickets for principals that are not here: %d\n", k.Others)
	}
}

// age writes how long a time of the daemon's is ago; a dash for none.
func age(text string, now time.Time, ago string) string {
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return "-"
	}
	switch d := now.Sub(at); {
	case d < 0:
		return text
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second) + ago
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute) + ago
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour) + ago
	default:
		return fmt.Sprintf("%dd", d/(24*time.Hour)) + ago
	}
}

// adminKeytabs is procedure KEYTABS.
func (d *daemon) adminKeytabs(ctx context.Context, args *xdr.AdminArgKeytabs, res *xdr.AdminResKeytabs) error {
	if args.Service != "" {
		var known []string
		if err := d.inLoop(ctx, func() { known = serviceNames(d.conf) }); err != nil {
			return err
		}
		if !slices.Contains(known, args.Service) {
			return fmt.Errorf("no service %q in the configuration in force: %s", args.Service, conf.DidYouMean(args.Service, known))
		}
	}
	// What does not fit into a reply is counted.
	room := rpc.MaxRecord / 2
	fits := func(m xdr.Message) bool {
		n := len(m.Append(nil))
		if n > room {
			res.LeftOff++
			return false
		}
		room -= n
		return true
	}
	for _, state := range d.procs.Keytabs() {
		if args.Service != "" && !slices.ContainsFunc(state.Uses, func(u creds.KeytabUse) bool { return u.Service == args.Service }) {
			continue
		}
		k := xdr.AdminKeytab{Source: state.Source, Needed: state.Needed, Skipped: uint32(state.Skipped), Refused: state.Times, Others: state.Others}
		if state.Err != nil {
			k.Error = state.Err.Error()
		}
		if !fits(&k) {
			continue
		}
		for _, u := range state.Uses {
			if use := (xdr.AdminKeytabUse{Service: u.Service, As: u.As}); fits(&use) {
				k.Uses = append(k.Uses, use)
			}
		}
		for i := range state.Missed {
			if drift := shownDrift(&state.Missed[i]); fits(&drift) {
				k.Drift = append(k.Drift, drift)
			}
		}
		for i := range state.Keys {
			if key := shownKey(&state.Keys[i]); fits(&key) {
				k.Keys = append(k.Keys, key)
			}
		}
		res.Keytabs = append(res.Keytabs, k)
	}
	return nil
}

// shownKey is a key as the admin program has it.
func shownKey(k *keytab.KeyState) xdr.AdminKey {
	return xdr.AdminKey{
		Principal: k.Principal, KVNO: k.KVNO, Enctype: k.Enctype.String(), Pending: k.Pending, Written: shownTime(k.Written), Here: shownTime(k.Here), Accepted: shownTime(k.Accepted),
		ValidUntil: shownTime(k.Until), Initiated: shownTime(k.Initiated), Prune: string(k.Prune), Why: k.Why,
	}
}

// shownDrift says of tickets that no key has opened why that is, and what to do.
func shownDrift(m *keytab.Missed) xdr.AdminDrift {
	var text string
	switch {
	case m.Held:
		text = "the key here of that version and type is another one than the KDC's, or they are not from the KDC; write its keys to the keytab again (kadmin ktadd)"
	case m.Version:
		text = "the keytab has that version for other types only; write the keys to it again, for every type that the KDC has (kadmin ktadd)"
	case m.KVNO > m.Newest:
		text = fmt.Sprintf("the KDC has newer keys than the keytab, where kvno %d is the newest; write them to it (kadmin ktadd, adcli update)", m.Newest)
	default:
		text = fmt.Sprintf("the keytab has kvno %d, and none of the older keys that they need: those were pruned too early, or the clients' tickets are out of date; the clients get new ones with kinit", m.Newest)
	}
	return xdr.AdminDrift{
		Principal: m.Principal, KVNO: m.KVNO, Enctype: m.Enctype.String(), Times: m.Times, First: shownTime(m.First), Last: shownTime(m.Last), Text: text,
	}
}

// shownTime writes a time for the admin program, empty for none.
func shownTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
