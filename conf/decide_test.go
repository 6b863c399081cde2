package conf

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"gssproxyd/mech/reason"
	"gssproxyd/rpc/peer"
)

const decideConf = `
[service/nfs-server]
mechs = krb5
euid = 0
socket = /run/gssproxy.sock
trusted = yes
[service/web]
mechs = krb5
euid = 33
program = /usr/sbin/apache2
[service/confined]
mechs = krb5
euid = 34
selinux_context = system_u:system_r:httpd_t:s0
[service/other-web]
mechs = krb5
euid = 33
program = /usr/sbin/nginx
[service/users]
mechs = krb5
euid = 0
allow_any_uid = yes
socket = /run/users.sock
[service/staff]
mechs = krb5
euid = 0
allow_any_uid = yes
group = 50
group = 51
socket = /run/staff.sock
[service/backup]
mechs = krb5
euid = 40
unit = backup@*.service
unit = restore.service
[service/contained]
mechs = krb5
euid = 41
container = *
[service/profiled]
mechs = krb5
euid = 42
apparmor_label = /usr/sbin/x
[service/roots]
mechs = krb5
euid = 43
program_trusted = yes
program = /usr/sbin/y
`

func TestDecide(t *testing.T) {
	c := load(t, decideConf)
	apache, nginx, python := peer.Known("/usr/sbin/apache2"), peer.Known("/usr/sbin/nginx"), peer.Known("/usr/bin/python3.13")
	here, there := peer.Known(true), peer.Known(false)
	in := func(unit, container string) peer.Maybe[peer.Place] {
		return peer.Known(peer.Place{Unit: unit, Container: container})
	}
	for name, test := range map[string]struct {
		p      peer.Info
		socket string
		want   string // service, or reason and the service it is about
	}{
		"uid":                             {peer.Info{UID: 0}, "/run/gssproxy.sock", "nfs-server"},
		"uid on another socket":           {peer.Info{UID: 0}, SocketPath, "wrong-socket nfs-server"},
		"program":                         {peer.Info{UID: 33, Program: apache, MountNS: here}, SocketPath, "web"},
		"next program":                    {peer.Info{UID: 33, Program: nginx, MountNS: here}, SocketPath, "other-web"},
		"no such program":                 {peer.Info{UID: 33, Program: python}, SocketPath, "program-mismatch web"},
		"program unknown":                 {peer.Info{UID: 33}, SocketPath, "program-unknown web"},
		"program unknown here":            {peer.Info{UID: 33, MountNS: here}, SocketPath, "program-unknown web"},
		"program in a container":          {peer.Info{UID: 33, MountNS: there}, SocketPath, "program-in-other-namespace web"},
		"same program with a private tmp": {peer.Info{UID: 33, Program: apache, MountNS: there}, SocketPath, "web"},
		"program is a prefix":             {peer.Info{UID: 33, Program: peer.Known("/usr/sbin/apache2-evil")}, SocketPath, "program-mismatch web"},
		"selinux":                         {peer.Info{UID: 34, SELinux: peer.Known("system_u:system_r:httpd_t:s0")}, SocketPath, "confined"},
		"selinux, one has no range":       {peer.Info{UID: 34, SELinux: peer.Known("system_u:system_r:httpd_t")}, SocketPath, "confined"},
		"selinux, other range":            {peer.Info{UID: 34, SELinux: peer.Known("system_u:system_r:httpd_t:s1")}, SocketPath, "selinux-mismatch confined"},
		"selinux, other type":             {peer.Info{UID: 34, SELinux: peer.Known("system_u:system_r:init_t:s0")}, SocketPath, "selinux-mismatch confined"},
		"selinux unknown":                 {peer.Info{UID: 34}, SocketPath, "selinux-mismatch confined"},
		"selinux is another module":       {peer.Info{UID: 34, SELinux: peer.Known("unconfined")}, SocketPath, "selinux-mismatch confined"},
		"its group":                       {peer.Info{UID: 7, GID: 51}, "/run/staff.sock", "staff"},
		"another of its groups":           {peer.Info{UID: 7, GID: 1, Groups: peer.Known([]uint32{2, 50})}, "/run/staff.sock", "staff"},
		"none of the groups":              {peer.Info{UID: 7, GID: 1, Groups: peer.Known([]uint32{2})}, "/run/staff.sock", "group-mismatch staff"},
		"groups unknown":                  {peer.Info{UID: 7, GID: 1}, "/run/staff.sock", "group-mismatch staff"},
		"unit":                            {peer.Info{UID: 40, Place: in("backup@db.service", "")}, SocketPath, "backup"},
		"the other unit":                  {peer.Info{UID: 40, Place: in("restore.service", "")}, SocketPath, "backup"},
		"no such unit":                    {peer.Info{UID: 40, Place: in("backup.service", "")}, SocketPath, "unit-mismatch backup"},
		"no unit":                         {peer.Info{UID: 40, Place: in("", "")}, SocketPath, "unit-mismatch backup"},
		"unit unknown":                    {peer.Info{UID: 40}, SocketPath, "unit-mismatch backup"},
		"container":                       {peer.Info{UID: 41, Place: in("x.scope", "0a0a")}, SocketPath, "contained"},
		"no container":                    {peer.Info{UID: 41, Place: in("x.scope", "")}, SocketPath, "container-mismatch contained"},
		"container unknown":               {peer.Info{UID: 41}, SocketPath, "container-mismatch contained"},
		"profile":                         {peer.Info{UID: 42, AppArmor: peer.Known("/usr/sbin/x (enforce)")}, SocketPath, "profiled"},
		"profile that complains":          {peer.Info{UID: 42, AppArmor: peer.Known("/usr/sbin/x (complain)")}, SocketPath, "apparmor-mismatch profiled"},
		"another profile":                 {peer.Info{UID: 42, AppArmor: peer.Known("/usr/sbin/x2 (enforce)")}, SocketPath, "apparmor-mismatch profiled"},
		"profile unknown":                 {peer.Info{UID: 42}, SocketPath, "apparmor-mismatch profiled"},
		"root's program":                  {peer.Info{UID: 43, Program: peer.Known("/usr/sbin/y"), Trusted: here}, SocketPath, "roots"},
		"another program of root's":       {peer.Info{UID: 43, Program: python, Trusted: here}, SocketPath, "program-mismatch roots"},
		"a program not of root's":         {peer.Info{UID: 43, Program: peer.Known("/usr/sbin/y"), Trusted: there}, SocketPath, "program-untrusted roots"},
		"whose program is not known":      {peer.Info{UID: 43, Program: peer.Known("/usr/sbin/y")}, SocketPath, "program-untrusted roots"},
		"any uid":                         {peer.Info{UID: 12345}, "/run/users.sock", "users"},
		"any uid on another socket":       {peer.Info{UID: 12345}, SocketPath, "wrong-socket users"},
		"socket nobody has":               {peer.Info{UID: 0}, "/run/none.sock", "wrong-socket nfs-server"},
	} {
		t.Run(name, func(t *testing.T) {
			d := c.Decide(&test.p, test.socket)
			got := string(d.Reason)
			if d.Service != nil {
				got += d.Service.Name
			}
			if d.near != nil {
				got += " " + d.near.Name
			}
			if got != test.want {
				t.Errorf("got %s, want %s; %s", got, test.want, strings.Join(d.Trace(), "\n"))
			}
		})
	}
}

func TestTrace(t *testing.T) {
	c := load(t, decideConf)
	for _, s := range c.Services {
		s.Where = "x.conf:1"
	}
	p := peer.Info{UID: 33, GID: 33, Groups: peer.Known([]uint32{4, 5}), PID: 7, Program: peer.Known("/usr/sbin/nginx")}
	want := []string{
		"service/nfs-server (x.conf:1) is for uid 0, not 33",
		"service/web (x.conf:1) is for program /usr/sbin/apache2, not /usr/sbin/nginx",
		"service/confined (x.conf:1) is for uid 34, not 33",
		"service/other-web (x.conf:1) matches",
	}
	d := c.Decide(&p, SocketPath)
	if diff := cmp.Diff(want, d.Trace()); diff != "" {
		t.Error(diff)
	}
	if got := d.Conclusion(); got != want[3] {
		t.Error(got)
	}
	p.Program = peer.Known("/usr/sbin/httpd")
	want = append(want[:3:3],
		"service/other-web (x.conf:1) is for program /usr/sbin/nginx, not /usr/sbin/httpd",
		"service/users (x.conf:1) is reached through /run/users.sock, not /var/lib/gssproxy/default.sock",
		"service/staff (x.conf:1) is for the group 50, 51, and the caller has 33, 4, 5",
		"service/backup (x.conf:1) is for uid 40, not 33",
		"service/contained (x.conf:1) is for uid 41, not 33",
		"service/profiled (x.conf:1) is for uid 42, not 33",
		"service/roots (x.conf:1) is for uid 43, not 33",
	)
	want[1] = strings.Replace(want[1], "nginx", "httpd", 1)
	d = c.Decide(&p, SocketPath)
	if diff := cmp.Diff(want, d.Trace()); diff != "" {
		t.Error(diff)
	}
	if got := d.Conclusion(); got != want[1] {
		t.Error(got)
	}
	for p, want := range map[*peer.Info]string{
		{UID: 33, MountNS: peer.Known(false)}:                                     "service/web (x.conf:1) is for program /usr/sbin/apache2, and in the caller's mount namespace that is another file, or the caller runs another program",
		{UID: 33}:                                                                 "service/web (x.conf:1) is for program /usr/sbin/apache2, and that of the caller is not known",
		{UID: 33, Program: peer.Known("/a b")}:                                    `service/web (x.conf:1) is for program /usr/sbin/apache2, not "/a b"`,
		{UID: 34, SELinux: peer.Known("a:b:c")}:                                   "service/confined (x.conf:1) is for SELinux context system_u:system_r:httpd_t:s0, not a:b:c",
		{UID: 34, SELinux: peer.Known("a\nb:c")}:                                  `service/confined (x.conf:1) is for SELinux context system_u:system_r:httpd_t:s0, not "a\nb:c"`,
		{UID: 40}:                                                                 "service/backup (x.conf:1) is for unit backup@*.service, restore.service, and that of the caller is not known",
		{UID: 40, Place: peer.Known(peer.Place{})}:                                "service/backup (x.conf:1) is for unit backup@*.service, restore.service, and the caller is in none",
		{UID: 40, Place: peer.Known(peer.Place{Unit: "a b.service"})}:             `service/backup (x.conf:1) is for unit backup@*.service, restore.service, not "a b.service"`,
		{UID: 41, Place: peer.Known(peer.Place{Unit: "a.service"})}:               "service/contained (x.conf:1) is for container *, and the caller is in none",
		{UID: 42, AppArmor: peer.Known("x (complain)")}:                           `service/profiled (x.conf:1) is for AppArmor label /usr/sbin/x (enforce), not "x (complain)"`,
		{UID: 43, Program: peer.Known("/usr/sbin/y"), Trusted: peer.Known(false)}: "service/roots (x.conf:1) is for programs whose file is root's and that nobody else may write to, not /usr/sbin/y",
		{UID: 43}: "service/roots (x.conf:1) is for programs whose file is root's and that nobody else may write to, and that of the caller is not known",
		{UID: 34}: "service/confined (x.conf:1) is for SELinux context system_u:system_r:httpd_t:s0, and that of the caller is not known",
		{UID: 0, Program: peer.Known("/usr/sbin/nfs")}: "service/nfs-server (x.conf:1) is reached through /run/gssproxy.sock, not /var/lib/gssproxy/default.sock",
	} {
		if d := c.Decide(p, SocketPath); d.Conclusion() != want || !slices.Contains(d.Trace(), want) {
			t.Errorf("no %q in\n%s\n%s", want, d.Conclusion(), strings.Join(d.Trace(), "\n"))
		}
	}
}

func TestNoServiceForUID(t *testing.T) {
	c := load(t, "[service/a]\nmechs = krb5\neuid = 1\n")
	d := c.Decide(&peer.Info{UID: 2}, SocketPath)
	if d.Service != nil || d.Reason != reason.NoServiceForUID || d.near != nil {
		t.Errorf("%+v", d)
	}
	if got, want := d.Conclusion(), "no service reached through "+SocketPath+" is for uid 2"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// The first service in order that admits the peer by every rule, each of them written down once
// more.
func TestDecideIsFirstMatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		uid := rapid.SampledFrom([]uint32{0, 33, 1000})
		socket := rapid.SampledFrom([]string{"", "/run/a", "/run/b"})
		program := rapid.SampledFrom([]string{"", "/bin/x", "/bin/y"})
		label := rapid.SampledFrom([]string{"", "u:r:t", "u:r:t:s0", "u:r:t:s1", "u:r:other:s0"})
		groups := rapid.SliceOfNDistinct(rapid.SampledFrom([]uint32{1, 2, 3}), 0, 2, rapid.ID)
		units := rapid.SampledFrom([][]string{nil, {"a.service"}, {"*.service"}, {"b*", "?.service"}})
		containers := rapid.SampledFrom([][]string{nil, {"c1"}, {"*"}})
		profile := rapid.SampledFrom([]string{"", "p", "q"})
		c := &Config{DefaultSocket: "/run/b"}
		for i := range rapid.IntRange(0, 8).Draw(t, "services") {
			s := &Service{
				Name: fmt.Sprint(i), EUID: uid.Draw(t, "euid"), AllowAnyUID: rapid.Bool().Draw(t, "any"),
				Socket: socket.Draw(t, "socket"), Program: program.Draw(t, "program"), SELinuxContext: label.Draw(t, "context"),
				Groups: groups.Draw(t, "groups"), Units: units.Draw(t, "units"), Containers: containers.Draw(t, "containers"),
				AppArmorLabel: profile.Draw(t, "profile"), ProgramTrusted: rapid.Bool().Draw(t, "trusted only"),
			}
			s.selinux, _ = parseContext(s.SELinuxContext)
			c.Services = append(c.Services, s)
		}
		p := &peer.Info{UID: uid.Draw(t, "uid"), GID: 3}
		if rapid.Bool().Draw(t, "groups known") {
			p.Groups = peer.Known(groups.Draw(t, "peer groups"))
		}
		place, placed := peer.Place{Unit: rapid.SampledFrom([]string{"", "a.service", "b.service", "b.scope"}).Draw(t, "unit"), Container: rapid.SampledFrom([]string{"", "c1", "c2"}).Draw(t, "container")}, rapid.Bool().Draw(t, "place known")
		if placed {
			p.Place = peer.Known(place)
		}
		if v := profile.Draw(t, "peer profile"); v != "" {
			p.AppArmor = peer.Known(v + rapid.SampledFrom([]string{"", " (enforce)", " (complain)"}).Draw(t, "mode"))
		}
		if rapid.Bool().Draw(t, "trust known") {
			p.Trusted = peer.Known(rapid.Bool().Draw(t, "trusted"))
		}
		if v := program.Draw(t, "peer program"); v != "" {
			p.Program = peer.Known(v)
		}
		if v := label.Draw(t, "peer context"); v != "" {
			p.SELinux = peer.Known(v)
		}
		from := rapid.SampledFrom([]string{"/run/a", "/run/b"}).Draw(t, "from")

		admits := func(s *Service) bool {
			sameLabel := func() bool {
				label, ok := p.SELinux.Get()
				ours, theirs := strings.Split(s.SELinuxContext, ":"), strings.Split(label, ":")
				n := min(len(ours), len(theirs))
				return ok && slices.Equal(ours[:n], theirs[:n])
			}
			theirProgram, ok := p.Program.Get()
			theirGroups, _ := p.Groups.Get()
			theirGroups = append(theirGroups[:len(theirGroups):len(theirGroups)], 3)
			trusted, _ := p.Trusted.Get()
			profile, _ := p.AppArmor.Get()
			return (s.AllowAnyUID || s.EUID == p.UID) &&
				(len(s.Groups) == 0 || len(slices.Compact(slices.Sorted(slices.Values(append(theirGroups, s.Groups...))))) < len(s.Groups)+len(slices.Compact(slices.Sorted(slices.Values(theirGroups))))) &&
				(len(s.Units) == 0 || placed && (s.Units[0] == place.Unit || s.Units[0] == "*.service" && strings.HasSuffix(place.Unit, ".service") || s.Units[0] == "b*" && place.Unit != "")) &&
				(len(s.Containers) == 0 || placed && place.Container != "" && (s.Containers[0] == "*" || s.Containers[0] == place.Container)) &&
				(s.AppArmorLabel == "" || profile == s.AppArmorLabel+" (enforce)") && (!s.ProgramTrusted || trusted) &&
				(s.SELinuxContext == "" || sameLabel()) &&
				(s.Program == "" || ok && theirProgram == s.Program) &&
				(s.Socket == from || s.Socket == "" && from == "/run/b")
		}
		var want *Service
		if i := slices.IndexFunc(c.Services, admits); i >= 0 {
			want = c.Services[i]
		}
		d := c.Decide(p, from)
		if d.Service != want {
			t.Fatalf("got %v, want %v", d.Service, want)
		}
		if (d.Reason == "") != (want != nil) || want != nil && d.near != nil || d.Reason != "" && d.Reason.Doc().Text == "" {
			t.Fatalf("reason %q near %v", d.Reason, d.near)
		}
		if trace := d.Trace(); want == nil && len(trace) != len(c.Services) || want != nil && !strings.HasSuffix(trace[len(trace)-1], " matches") {
			t.Fatalf("%q", trace)
		}
	})
}

func TestDecideDoesNotAllocate(t *testing.T) {
	c := load(t, decideConf)
	p := &peer.Info{UID: 33, Program: peer.Known("/usr/sbin/nginx")}
	q := &peer.Info{UID: 34, SELinux: peer.Known("system_u:system_r:httpd_t:s0")}
	if n := testing.AllocsPerRun(100, func() {
		if c.Decide(p, SocketPath).Service == nil || c.Decide(q, SocketPath).Service == nil || c.Decide(p, "/run/none").Service != nil {
			t.Fatal("wrong decision")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkDecide(b *testing.B) {
	c := load(b, decideConf)
	p := &peer.Info{UID: 33, Program: peer.Known("/usr/sbin/nginx")}
	b.ReportAllocs()
	for b.Loop() {
		if c.Decide(p, SocketPath).Service == nil {
			b.Fatal("refused")
		}
	}
}

// Only where a rule is about the process does anybody have to know it.
func TestNeeds(t *testing.T) {
	c := &Config{DefaultSocket: "/run/default", Services: []*Service{
		{Program: "/bin/x"}, {Socket: "/run/plain", SELinuxContext: "a:b:c", Groups: []uint32{1}},
		{Socket: "/run/own", ProgramTrusted: true, Units: []string{"a.service"}}, {Socket: "/run/own", Containers: []string{"*"}, AppArmorLabel: "a"},
	}}
	for socket, want := range map[string]peer.Evidence{
		"/run/default": peer.EvidenceProgram, "/run/plain": 0, "/run/none": 0,
		"/run/own": peer.EvidenceTrusted | peer.EvidencePlace | peer.EvidenceAppArmor,
	} {
		if got := c.Needs(&peer.Info{}, socket); got != want {
			t.Errorf("%s: %b, want %b", socket, got, want)
		}
	}
}
