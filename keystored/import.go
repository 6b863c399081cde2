package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"gssproxyd/command"
	"gssproxyd/conf"
	"gssproxyd/keystore/api"
	"gssproxyd/keytab"
	"gssproxyd/keytab/sealed"
	"gssproxyd/mech/krb5/etype"
	"gssproxyd/openat"
)

// imported is what keystored import prints.
type imported struct {
	Written bool            `json:"written"`
	Files   []importedFile  `json:"files"`
	Entries []importedEntry `json:"entries"`
}

// importedFile is what became of a keytab.
type importedFile struct {
	File    string `json:"file"`
	Keys    int    `json:"keys"`
	Problem string `json:"problem,omitempty"` // why it, or some of it, is not taken
	CanGo   bool   `json:"can_go"`            // all that is in it is in the store, as the store says

	content []byte
}

// importedEntry is what became of the keys of a principal.
type importedEntry struct {
	Principal string           `json:"principal"`
	Aliases   []string         `json:"aliases"` // other names of the account, which have these keys
	Outcome   api.Outcome      `json:"outcome,omitempty"`
	Problem   string           `json:"problem,omitempty"`
	Keys      []api.KeyOutcome `json:"keys"`
	Rotation  string           `json:"rotation,omitempty"`
	Unusable  []string         `json:"unusable"` // keys that no store can use, and why
	Files     []string         `json:"files"`
	Verified  bool             `json:"verified"` // read back, all these keys are there

	given []api.KeyGiven
}

// importing is an import that goes on.
type importing struct {
	imported
	hosts    []string
	entries  map[string]*importedEntry
	identity *sealed.Identity // that opens sealed keytabs; nil: none
	progress func(string)
}

// importCommand is keystored import.
func importCommand(o *options) *cobra.Command {
	var hostConfig, stateDir, account string
	var hosts []string
	var write, asJSON bool
	cmd := &cobra.Command{
		Use: "import [KEYTAB...]", Short: "Bring keys of keytabs into the store; without --write, say what that would do",
		RunE: func(cmd *cobra.Command, files []string) error {
			if len(files) == 0 && hostConfig == "" {
				return errors.New("import: keytabs are expected, or --host-config FILE, whose services name them")
			}
			if hostConfig != "" {
				named, err := keytabsOf(hostConfig)
				if err != nil {
					return err
				}
				files = append(files, named...)
			}
			im := &importing{hosts: hosts, entries: make(map[string]*importedEntry)}
			im.Written = write
			im.progress = func(text string) { fmt.Fprintln(command.Plain{Writer: cmd.ErrOrStderr()}, text) }
			im.identity, _ = sealed.HostIdentity(os.Getenv("CREDENTIALS_DIRECTORY"), cmp.Or(stateDir, o.stateDir()))
			defer im.zero()
			for _, f := range files {
				im.read(f)
			}
			known, _ := load(o.config) // what is wrong with it is nothing here
			if err := im.accounts(known.realms, account); err != nil {
				return err
			}
			c := o.client()
			defer c.Close()
			if err := im.ask(cmd.Context(), c); err != nil {
				return err
			}
			im.conclude()
			return command.Answer(cmd, asJSON, &im.imported, printImported, func(res *imported) command.Status {
				if res.well() {
					return 0
				}
				return command.Unwell
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&hostConfig, "host-config", "", "a host's gssproxy.conf: the `file` whose services name the keytabs; drop-ins beside it count too")
	f.StringArrayVar(&hosts, "hosts", nil, "`pattern` of names of hosts that may have the keys, of entries that are new; more may follow")
	f.StringVar(&account, "account", "", "`name` with its realm, of an account of Active Directory: other names in the keytabs that have its keys become its aliases, as they do by themselves in a realm with change = kpasswd")
	f.BoolVar(&write, "write", false, "write, and read back what was written")
	f.StringVar(&stateDir, "state-dir", "", "`directory` with the identity that sealed keytabs are opened with (default that of this instance)")
	f.BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// stateDir is that of the configuration, as far as it can be read.
func (o *options) stateDir() string {
	c, _ := load(o.config)
	return c.stateDir
}

// keytabsOf returns the keytabs that a host's configuration names. What else is wrong with that, its
// users among it, who are another host's, is nothing here.
func keytabsOf(file string) (list []string, err error) {
	c, err := conf.Load(conf.Source{File: file, Dir: filepath.Dir(file)})
	if errs, bad := errors.AsType[*conf.Errors](err); bad {
		c = errs.Read
	}
	for _, s := range c.Services {
		for _, kv := range s.CredStore {
			path := strings.TrimPrefix(strings.TrimPrefix(kv.Value, "FILE:"), "SEALED:")
			if (kv.Key == "keytab" || kv.Key == "client_keytab") && filepath.IsAbs(path) && !kv.Varies() && !slices.Contains(list, path) {
				list = append(list, path)
			}
		}
	}
	if len(list) == 0 {
		return nil, cmp.Or(err, fmt.Errorf("%s: no service names a keytab", file))
	}
	return list, nil
}

func (im *importing) zero() {
	for i := range im.Files {
		clear(im.Files[i].content)
	}
	for _, e := range im.entries {
		for _, k := range e.given {
			clear(k.Key)
		}
	}
}

// maxKeytab bounds a file.
const maxKeytab = 16 << 20

// read takes the keys of a file.
func (im *importing) read(name string) {
	if slices.ContainsFunc(im.Files, func(f importedFile) bool { return f.File == name }) {
		return
	}
	im.Files = append(im.Files, importedFile{File: name})
	f := &im.Files[len(im.Files)-1]
	content, _, err := openat.ReadFile(name, maxKeytab)
	if err == nil && (bytes.HasPrefix(content, []byte("age-encryption.org/")) || bytes.HasPrefix(content, []byte("-----BEGIN AGE"))) {
		if im.identity == nil {
			f.Problem = "it is sealed, and there is no identity here to open it with; name its directory with --state-dir"
			return
		}
		var plain etype.Secret
		if plain, err = im.identity.Open(content); err == nil {
			content = plain
		}
	}
	f.content = content
	if err != nil {
		if wrong, ok := errors.AsType[*fs.PathError](err); ok {
			err = wrong.Err // the name is said
		}
		f.Problem = err.Error()
		return
	}
	entries, err := keytab.Parse(content)
	if err != nil {
		f.Problem = fmt.Sprintf("broken at %v; nothing of it is taken", err)
		return
	}
	if len(entries) == 0 {
		f.Problem = "it has no keys"
	}
	f.Keys = len(entries)
	for i := range entries {
		im.take(name, &entries[i])
	}
}

// take takes a key.
func (im *importing) take(file string, k *keytab.Entry) {
	e := im.entries[k.Principal]
	if e == nil {
		e = &importedEntry{Principal: k.Principal, Aliases: []string{}, Keys: []api.KeyOutcome{}, Unusable: []string{}}
		im.entries[k.Principal] = e
	}
	if !slices.Contains(e.Files, file) {
		e.Files = append(e.Files, file)
	}
	if !k.Enctype.Supported() || len(k.Key) != k.Enctype.KeySize() {
		why := fmt.Sprintf("kvno %d, %v: this type is not supported", k.KVNO, k.Enctype)
		if k.Enctype.Supported() {
			why = fmt.Sprintf("kvno %d, %v: it has %d bytes, %d are expected", k.KVNO, k.Enctype, len(k.Key), k.Enctype.KeySize())
		}
		if !slices.Contains(e.Unusable, why) {
			e.Unusable = append(e.Unusable, why)
		}
		return
	}
	for _, has := range e.given {
		if has.KVNO != k.KVNO || has.Enctype != int32(k.Enctype) {
			continue
		}
		if subtle.ConstantTimeCompare(has.Key, k.Key) == 0 {
			e.Outcome = api.KeyConflict
			e.Problem = fmt.Sprintf("kvno %d, %v: there are two keys of this version and type, in %s; see which one the KDC has (kinit -k -t FILE), and leave the other out", k.KVNO, k.Enctype, strings.Join(e.Files, " and "))
		}
		return
	}
	e.given = append(e.given, api.KeyGiven{KVNO: k.KVNO, Enctype: int32(k.Enctype), Key: slices.Clone(k.Key), Since: int64(k.Timestamp)})
}

// progressEvery is how many entries are between two words about progress.
const progressEvery = 100

// ask has the store say what the keys would be, and writes them.
func (im *importing) ask(ctx context.Context, c *api.Client) error {
	for i, p := range slices.Sorted(maps.Keys(im.entries)) {
		e := im.entries[p]
		if i > 0 && i%progressEvery == 0 {
			im.progress(fmt.Sprintf("%d of %d principals", i, len(im.entries)))
		}
		if e.Problem == "" && len(e.given) > 0 {
			if err := im.askFor(ctx, c, e); err != nil {
				return err
			}
		}
		im.Entries = append(im.Entries, *e)
	}
	return nil
}

// askFor is ask for one principal. The error is one that others would have too.
func (im *importing) askFor(ctx context.Context, c *api.Client, e *importedEntry) error {
	request := &api.ImportRequest{Principal: e.Principal, Keys: e.given, Hosts: im.hosts, Aliases: e.Aliases}
	call := func(write bool) (res api.Imported, err error) {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		request.Write = write
		return res, askWith(ctx, c, "import", request, &res, nil)
	}
	res, err := call(false)
	if err == nil {
		e.Outcome, e.Problem, e.Keys, e.Rotation = res.Outcome, res.Text, res.Keys, res.Rotation
		if im.Written && res.Outcome != api.KeyConflict && res.Outcome != api.KeySame {
			_, err = call(true)
		}
	}
	if err == nil && e.Outcome != api.KeyConflict && (im.Written || e.Outcome == api.KeySame) {
		back, failed := call(false)
		err = failed
		if e.Verified = back.Outcome == api.KeySame; err == nil && !e.Verified {
			e.Problem = "read back, the store has other keys: somebody else changes this entry, or the store lost what was written"
		}
	}
	if refused, ok := errors.AsType[*api.Error](err); ok {
		e.Problem = refused.Error()
		return nil
	}
	return err
}

// callTimeout bounds one question.
const callTimeout = time.Minute

// conclude says which files can go.
func (im *importing) conclude() {
	for i := range im.Files {
		f := &im.Files[i]
		f.CanGo = f.Problem == "" && f.Keys > 0
		for j := range im.Entries {
			e := &im.Entries[j]
			if !slices.Contains(e.Files, f.File) {
				continue
			}
			if !e.Verified || len(e.Unusable) > 0 {
				f.CanGo = false
			}
		}
	}
}

// well reports whether all that was there was taken, or would be.
func (res *imported) well() bool {
	return !slices.ContainsFunc(res.Files, func(f importedFile) bool { return f.Problem != "" }) &&
		!slices.ContainsFunc(res.Entries, func(e importedEntry) bool { return e.Problem != "" || len(e.Unusable) > 0 })
}

func printImported(w io.Writer, res *imported) error {
	does := map[api.Outcome]string{
		api.KeySame: "the store has it", api.KeyNames: "more names of the account", api.KeyOlder: "older keys", api.KeyMore: "more types of the current key",
		api.KeyNewer: "newer kvno", api.KeyNew: "new", api.KeyConflict: "CONFLICT",
	}
	for _, e := range res.Entries {
		fmt.Fprintf(w, "%s: ", command.Shown(e.Principal))
		var kvnos []string
		for _, k := range e.Keys {
			if n := fmt.Sprint(k.KVNO); !slices.Contains(kvnos, n) {
				kvnos = append(kvnos, n)
			}
		}
		switch {
		case e.Problem != "" && e.Outcome == api.KeyConflict:
			fmt.Fprintf(w, "CONFLICT: %s", command.Shown(e.Problem))
		case e.Problem != "":
			fmt.Fprintf(w, "NOT TAKEN: %s", command.Shown(e.Problem))
		case len(e.Keys) == 0:
			fmt.Fprint(w, "no key that can be used")
		default:
			fmt.Fprintf(w, "%s (kvno %s)", does[e.Outcome], strings.Join(kvnos, ", "))
			if len(e.Aliases) > 0 {
				fmt.Fprintf(w, ", one account with %s", command.Shown(strings.Join(e.Aliases, ", ")))
			}
			if res.Written && e.Verified && e.Outcome != api.KeySame {
				fmt.Fprint(w, ", written and read back")
			}
		}
		fmt.Fprintln(w)
		if e.Rotation != "" {
			fmt.Fprintf(w, "  the rotation: %s\n", command.Shown(e.Rotation))
		}
		for _, u := range e.Unusable {
			fmt.Fprintf(w, "  cannot be used: %s\n", u)
		}
	}
	for _, f := range res.Files {
		switch {
		case f.Problem != "":
			fmt.Fprintf(w, "file %s: %s\n", command.Shown(f.File), command.Shown(f.Problem))
		case f.CanGo:
			fmt.Fprintf(w, "file %s: every key of it is in the store; it can go once the host takes them from there\n", command.Shown(f.File))
		case res.Written:
			fmt.Fprintf(w, "file %s: stays\n", command.Shown(f.File))
		}
	}
	if !res.Written {
		fmt.Fprintln(w, "nothing was written: --write does it")
	}
	return nil
}
