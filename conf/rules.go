package conf

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"gssproxyd/mech/reason"
	"gssproxyd/rpc/peer"
)

// A rule is about whom a service is for, besides the uid and the socket.
type rule struct {
	applies  func(*Service) bool
	evidence peer.Evidence // that it needs
	reasons  []reason.ID   // why a peer may fail it
	check    func(*Service, *peer.Info) reason.ID

	// text says of a peer that fails it what the service is for.
	text func(*Service, *peer.Info, reason.ID) string
}

// rules are tried in this order; those of the C daemon are in its own. What is not known of a peer
// meets no rule.
var rules = []rule{groupRule, seLinuxRule, appArmorRule, unitRule, podRule, containerRule, trustedRule, programRule}

var groupRule = rule{
	applies: func(s *Service) bool { return len(s.Groups) > 0 },
	reasons: []reason.ID{reason.GroupMismatch},
	check: func(s *Service, p *peer.Info) reason.ID {
		if slices.Contains(s.Groups, p.GID) {
			return ""
		}
		groups, _ := p.Groups.Get()
		if slices.ContainsFunc(groups, func(gid uint32) bool { return slices.Contains(s.Groups, gid) }) {
			return ""
		}
		return reason.GroupMismatch
	},
	text: func(s *Service, p *peer.Info, _ reason.ID) string {
		list := func(gids []uint32) string { return strings.Join(groups.write(gids), ", ") }
		is := "is for the group " + list(s.Groups)
		theirs, known := p.Groups.Get()
		if !known {
			return is + ", and those of the caller are not known"
		}
		return is + ", and the caller has " + list(append([]uint32{p.GID}, theirs[:min(len(theirs), 15)]...))
	},
}

var seLinuxRule = rule{
	applies: func(s *Service) bool { return s.SELinuxContext != "" },
	reasons: []reason.ID{reason.SELinuxMismatch},
	check: func(s *Service, p *peer.Info) reason.ID {
		label, _ := p.SELinux.Get()
		if theirs, ok := parseContext(label); !ok || !s.selinux.equal(theirs) {
			return reason.SELinuxMismatch
		}
		return ""
	},
	text: func(s *Service, p *peer.Info, _ reason.ID) string {
		theirs, known := p.SELinux.Get()
		return is("SELinux context", s.SELinuxContext, theirs, known)
	},
}

// is says what a service is for, and what the peer is instead.
func is(what, ours, theirs string, known bool) string {
	if !known {
		return fmt.Sprintf("is for %s %s, and that of the caller is not known", what, ours)
	}
	return fmt.Sprintf("is for %s %s, not %s", what, ours, plain(theirs))
}

var appArmorRule = rule{
	applies:  func(s *Service) bool { return s.AppArmorLabel != "" },
	evidence: peer.EvidenceAppArmor,
	reasons:  []reason.ID{reason.AppArmorMismatch},
	check: func(s *Service, p *peer.Info) reason.ID {
		// A profile that only complains confines nobody.
		if label, _ := p.AppArmor.Get(); label != s.AppArmorLabel+peer.Enforced {
			return reason.AppArmorMismatch
		}
		return ""
	},
	text: func(s *Service, p *peer.Info, _ reason.ID) string {
		theirs, known := p.AppArmor.Get()
		return is("AppArmor label", s.AppArmorLabel+peer.Enforced, theirs, known)
	},
}

var unitRule = placeRule("unit", reason.UnitMismatch,
	func(s *Service) []string { return s.Units }, func(p peer.Place) string { return p.Unit })

var containerRule = placeRule("container", reason.ContainerMismatch,
	func(s *Service) []string { return s.Containers }, func(p peer.Place) string { return p.Container })

// placeRule is a rule about a part of the peer's place.
func placeRule(what string, otherwise reason.ID, patterns func(*Service) []string, part func(peer.Place) string) rule {
	return rule{
		applies:  func(s *Service) bool { return len(patterns(s)) > 0 },
		evidence: peer.EvidencePlace,
		reasons:  []reason.ID{otherwise},
		check: func(s *Service, p *peer.Info) reason.ID {
			place, _ := p.Place.Get()
			return within(patterns(s), part(place), otherwise)
		},
		text: func(s *Service, p *peer.Info, _ reason.ID) string {
			place, known := p.Place.Get()
			return isIn(what, patterns(s), part(place), known)
		},
	}
}

// within returns otherwise unless one of the patterns matches the name. No pattern matches none.
func within(patterns []string, name string, otherwise reason.ID) reason.ID {
	for _, p := range patterns {
		if ok, _ := path.Match(p, name); ok && name != "" {
			return ""
		}
	}
	return otherwise
}

func isIn(what string, patterns []string, theirs string, known bool) string {
	ours := strings.Join(patterns, ", ")
	if known && theirs == "" {
		return fmt.Sprintf("is for %s %s, and the caller is in none", what, ours)
	}
	return is(what, ours, theirs, known)
}

var trustedRule = rule{
	applies:  func(s *Service) bool { return s.ProgramTrusted },
	evidence: peer.EvidenceTrusted,
	reasons:  []reason.ID{reason.ProgramUntrusted},
	check: func(s *Service, p *peer.Info) reason.ID {
		if trusted, _ := p.Trusted.Get(); !trusted {
			return reason.ProgramUntrusted
		}
		return ""
	},
	text: func(s *Service, p *peer.Info, _ reason.ID) string {
		const text = "is for programs whose file is root's and that nobody else may write to"
		program, known := p.Program.Get()
		if _, knew := p.Trusted.Get(); !knew || !known {
			return text + ", and that of the caller is not known"
		}
		return text + ", not " + plain(program)
	},
}

var programRule = rule{
	applies:  func(s *Service) bool { return s.Program != "" },
	evidence: peer.EvidenceProgram,
	reasons:  []reason.ID{reason.ProgramMismatch, reason.ProgramUnknown, reason.ProgramElsewhere},
	check: func(s *Service, p *peer.Info) reason.ID {
		program, ok := p.Program.Get()
		ours, hasNS := p.MountNS.Get()
		switch {
		case ok && program == s.Program:
			return ""
		case ok:
			return reason.ProgramMismatch
		case hasNS && !ours:
			return reason.ProgramElsewhere
		}
		return reason.ProgramUnknown
	},
	text: func(s *Service, p *peer.Info, why reason.ID) string {
		if why == reason.ProgramElsewhere {
			return fmt.Sprintf("is for program %s, and in the caller's mount namespace that is another file, or the caller runs another program", s.Program)
		}
		theirs, known := p.Program.Get()
		return is("program", s.Program, theirs, known)
	},
}
