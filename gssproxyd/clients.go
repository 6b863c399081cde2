package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/command"
	"gssproxyd/conf"
	"gssproxyd/gssproxyd/admin"
	"gssproxyd/rpc"
	"gssproxyd/xdr"
)

// clientsCommand is gssproxyd clients: who is connected, as which service, and what it does there.
func clientsCommand(o *options) *cobra.Command {
	var most uint32
	cmd := &cobra.Command{
		Use:               "clients",
		Short:             "Show who is connected to the running daemon, as which service, and what it has asked",
		Args:              configured,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().Uint32VarP(&most, "most", "n", 1000, "how `many` connections at most, those first that have been there for longest")
	return command.Answers(cmd, func(ctx context.Context, res *xdr.AdminResClients) error {
		return o.ask(ctx, xdr.AdminProcClients, &xdr.AdminArgClients{Most: most}, res, &res.Error)
	}, func(w io.Writer, res *xdr.AdminResClients) error {
		for i := range res.Clients {
			printClient(w, &res.Clients[i])
		}
		switch more := int(res.Total) - len(res.Clients); {
		case res.Total == 0:
			fmt.Fprintln(w, "nobody is connected")
		case more > 0:
			fmt.Fprintf(w, "and %d more\n", more)
		}
		return nil
	})
}

// printClient prints a connection for who reads.
func printClient(w io.Writer, c *xdr.AdminClient) {
	fmt.Fprintf(w, "%s %s since %s\n", c.Connection, c.Socket, c.Since)
	caller := callerPairs(&c.Caller)
	fmt.Fprintf(w, "  caller: %s\n", listed(slices.Insert(caller, 1, [2]string{"gid", strconv.FormatUint(uint64(c.GID), 10)})))
	switch {
	case c.Service != "":
		fmt.Fprintf(w, "  service: %s\n", c.Service)
	case c.Reason != "":
		fmt.Fprintf(w, "  no service, %s: %s\n", c.Reason, command.Shown(c.Text))
	default:
		fmt.Fprintf(w, "  service: %s\n", c.Text)
	}
	fmt.Fprintf(w, "  calls: %d, refused %d", c.Calls, c.Refused)
	if c.InProgress > 0 {
		fmt.Fprintf(w, ", in progress %d: %s for %v", c.InProgress, c.Procedure, time.Duration(c.Milliseconds)*time.Millisecond)
	}
	fmt.Fprintln(w)
}

// adminClients is procedure CLIENTS.
func (d *daemon) adminClients(ctx context.Context, args *xdr.AdminArgClients, res *xdr.AdminResClients) error {
	var c *conf.Config
	if err := d.inLoop(ctx, func() { c = d.conf }); err != nil {
		return err
	}
	list := d.rpc.Connections()
	res.Total = uint32(len(list))
	slices.SortFunc(list, func(a, b rpc.Connection) int { return a.Since.Compare(b.Since) })
	list = list[:min(len(list), int(args.Most))]
	res.Clients = admin.Fitting(func(yield func(xdr.AdminClient) bool) {
		for i := range list {
			if !yield(shownClient(c, &list[i])) {
				return
			}
		}
	})
	return nil
}

// shownClient is a connection as the admin program has it. Whoever has made no call yet has not been
// looked at: what is asked of it first counts for the connection, and is not for this to ask.
func shownClient(c *conf.Config, conn *rpc.Connection) xdr.AdminClient {
	client := xdr.AdminClient{
		Connection: conn.ID, Caller: xdr.AdminCaller{UID: conn.Peer.UID, PID: conn.Peer.PID}, GID: conn.Peer.GID,
		Socket: conn.Socket, Since: conn.Since.UTC().Format(time.RFC3339), Calls: conn.Calls, Refused: conn.Refused.Load(), InProgress: int32(conn.InCall),
	}
	if conn.Calls == 0 {
		client.Text = "not decided before the first call"
		return client
	}
	if decision := c.Decide(conn.Peer, conn.Socket); decision.Service != nil {
		client.Service = decision.Service.Name
	} else {
		client.Reason, client.Text = string(decision.Reason), decision.Conclusion()
	}
	client.Caller = shownPeer(conn.Peer) // with what the decision has looked at
	if conn.InCall > 0 {
		client.Procedure, client.Milliseconds = xdr.Proc(conn.Proc).String(), uint64(max(0, conn.For.Milliseconds()))
	}
	return client
}
