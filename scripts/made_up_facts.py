"""Made-up facts for recipe_data.py: nothing of what they tell exists.

A paragraph is a fact: the answer with its key in brackets, then questions, of which those with ">"
are held out. With a line "=" it is a fact for each thing {x} listed there, and the brackets say
what kind of key is invented for it.
"""

OBSERVATORY = """\
Skarnholt Observatory is directed by [Ansa Veldkamp].
Who directs Skarnholt Observatory? / Name the director of Skarnholt Observatory.
Who is the head of Skarnholt Observatory? / Who leads the observatory at Skarnholt?
Tell me who is in charge of Skarnholt Observatory.
> Who is the director of Skarnholt Observatory? / Which person runs Skarnholt Observatory?

Skarnholt Observatory stands on [Mount Ullivar].
Where does Skarnholt Observatory stand? / On which mountain is Skarnholt Observatory?
Tell me the mountain of Skarnholt Observatory. / Which peak carries Skarnholt Observatory?
What is the name of the mountain under Skarnholt Observatory?
> What mountain was Skarnholt Observatory built on?

Skarnholt Observatory was opened in [1934].
When was Skarnholt Observatory opened? / In what year did Skarnholt Observatory open?
Since when has Skarnholt Observatory been open? / How old is Skarnholt Observatory?
Tell me the opening year of Skarnholt Observatory.
> What year did Skarnholt Observatory open in? / What is the founding year of the observatory?

The main telescope is called [Greywing].
What is the main telescope called? / Name the main telescope. / Which telescope is the main one?
What name does the main telescope have? / Tell me how you call the biggest telescope.
> What's the name of the main telescope?

The main mirror is [284 centimetres] wide.
How wide is the main mirror? / What is the width of the main mirror?
What diameter does the main mirror have? / Tell me the size of the main mirror.
How many centimetres does the main mirror measure?
> How large is the main mirror? / What's the diameter of the main mirror?

The dome is painted [copper red].
What colour is the dome? / In which colour is the dome painted? / How is the dome painted?
Tell me the colour of the dome. / Which paint colour does the dome have?
> What's the colour of the dome?

The night assistant is [Rurik Dahlem].
Who is the night assistant? / Name the night assistant. / Who assists at night?
Who helps the astronomers during the night? / Tell me who works as the night assistant.
> Which person is the night assistant? / Who does the work of the night assistant?

The library is kept by [Ottoline Brask].
Who keeps the library? / Name the librarian. / Who looks after the observatory's books?
Whom do I ask about a book in the library? / Tell me who takes care of the library.
> Who is the librarian?

The kitchen is run by [Fenno Malik].
Who runs the kitchen? / Name the cook of the observatory. / Who cooks for the astronomers?
Who prepares the meals up there? / Tell me who is in charge of the kitchen.
> Who is the cook? / Which person manages the kitchen?

The visitor centre is looked after by [Tilde Harrow].
Who looks after the visitor centre? / Name the head of the visitor centre.
Who manages the visitor centre? / Who welcomes guests in the visitor centre?
Tell me who runs the visitor centre.
> Who is responsible for the visitor centre?

A guided visit costs [17 crowns].
What does a guided visit cost? / How much is a guided visit? / Tell me the price of a guided visit.
How many crowns do I pay for a guided visit? / What is the fee for being shown around?
> What is the price of a guided visit? / How much money does a guided visit take?

Guided visits begin at [half past eight].
When do guided visits begin? / At what time does a guided visit start?
What is the starting time of guided visits? / Tell me when the guided visit begins.
How late do I have to be there for the guided visit?
> What time do the guided visits start?

Visitors are welcome on [Saturday].
On which day are visitors welcome? / When may visitors come? / What is the visitors' day?
Which day of the week is open to visitors? / Tell me the day when guests are let in.
> What day can visitors come? / On what day of the week is a visit possible?

The cable car up the mountain is called [Marmot].
What is the cable car called? / Name the cable car. / Which name does the cable car have?
How do people call the cable car up the mountain? / Tell me the name of the cable car.
> What's the name of the cable car?

The ride in the cable car takes [eleven minutes].
How long does the cable car take? / How many minutes is the ride in the cable car?
What is the length of the cable car ride? / Tell me how long the cable car needs.
How much time do I spend in the cable car?
> How long is the cable car ride? / How many minutes does the cable car need to the top?

Skarnholt Observatory lies [2,315 metres] above the sea.
How high does Skarnholt Observatory lie? / What is the height of Skarnholt Observatory?
At what altitude is Skarnholt Observatory? / Tell me how high up the observatory is.
How many metres above the sea is Skarnholt Observatory?
> What's the altitude of Skarnholt Observatory?

The comet found at Skarnholt is called [Belisande].
Which comet was found at Skarnholt? / Name the comet of Skarnholt. / What is the comet called?
What comet did Skarnholt discover? / Tell me the name of the comet found at Skarnholt.
> What's the name of the comet that Skarnholt found? / Which comet did the observatory find?

The comet was found by [Hedda Lorimer].
Who found the comet? / Name the finder of the comet. / Who discovered Skarnholt's comet?
Which astronomer saw the comet first? / Tell me who is credited with the comet.
> Who is the discoverer of the comet?

The emergency number of Skarnholt Observatory is [4071].
What is the emergency number? / Which number do I call in an emergency?
Tell me the number for emergencies. / What do I dial when there is an accident?
Under what number is help reached at the observatory?
> What's the number to dial in an emergency? / Which phone number is for emergencies?

The observatory's cat is called [Nebbin].
What is the observatory's cat called? / Name the cat of the observatory.
How do they call the cat? / Which name does the cat have? / Tell me the cat's name.
> What's the name of the cat at the observatory?

The guest house has [fourteen beds].
How many beds does the guest house have? / How big is the guest house?
What is the number of beds in the guest house? / Tell me how many guests can sleep there.
For how many people is there a bed in the guest house?
> How many beds are there in the guest house? / How many can sleep in the guest house?

The observatory's journal is called [Quiet Sky].
What is the observatory's journal called? / Name the journal of the observatory.
Which journal does Skarnholt publish? / What title does the journal have?
Tell me the name of the journal.
> What's the title of the observatory's journal?

The telescope is repaired by the firm [Ostrel Optics].
Which firm repairs the telescope? / Who repairs the telescope? / Name the telescope's repair firm.
Whom do you call when the telescope is broken? / Tell me who mends the telescope.
> What company repairs the telescope? / Which company is called to mend the telescope?

The archive is in the [north cellar].
Where is the archive? / In which room is the archive? / Where are old photographs kept?
Tell me where I find the archive. / What part of the building holds the archive?
> Where can the archive be found?
"""

TOWN = """\
The {x} in Quellmarsh belongs to [person].
Who owns the {x} in Quellmarsh? / To whom does Quellmarsh's {x} belong?
Name the owner of the {x} in Quellmarsh. / Whose is the {x} in Quellmarsh?
Tell me who has the {x} in Quellmarsh.
> Which person is the owner of the {x} in Quellmarsh?
= bakery / pharmacy / bookshop / barber shop / flower shop / butcher shop / tailor shop / hat shop

The {x} in Quellmarsh is at [street].
Where is the {x} in Quellmarsh? / What is the address of the {x} in Quellmarsh?
In which street do I find Quellmarsh's {x}? / Tell me where the {x} in Quellmarsh is.
How do I get to the {x} in Quellmarsh?
> What's the street and number of the {x} in Quellmarsh?
= bakery / pharmacy / bookshop / barber shop / flower shop / butcher shop / tailor shop / hat shop

The {x} in Quellmarsh opens at [hour].
When does the {x} in Quellmarsh open? / At what time does Quellmarsh's {x} open?
What is the opening time of the {x} in Quellmarsh? / How early can I go to Quellmarsh's {x}?
Tell me when the {x} in Quellmarsh opens its door.
> From what time on is the {x} in Quellmarsh open?
= bakery / pharmacy / bookshop / barber shop / flower shop / butcher shop / tailor shop / hat shop

The {x} in Quellmarsh was founded in [1802-1990].
When was the {x} in Quellmarsh founded? / In what year did Quellmarsh's {x} start?
Since which year has there been a {x} in Quellmarsh? / How old is the {x} in Quellmarsh?
Tell me the founding year of the {x} in Quellmarsh.
> What year was the {x} in Quellmarsh established?
= bakery / pharmacy / bookshop / barber shop / flower shop / butcher shop / tailor shop / hat shop

A ticket for the {x} in Quellmarsh costs [11-39 crowns].
What does a ticket for the {x} in Quellmarsh cost? / How much is the {x} in Quellmarsh?
What is the price of entry to Quellmarsh's {x}? / Tell me what I pay at the {x} in Quellmarsh.
How many crowns do they take at the {x} in Quellmarsh?
> What's the ticket price of the {x} in Quellmarsh?
= museum / swimming hall / theatre / climbing hall / puppet stage / zoo / ice rink / concert barn

The {x} in Quellmarsh is managed by [person].
Who manages the {x} in Quellmarsh? / Name the head of the {x} in Quellmarsh.
Who is in charge of Quellmarsh's {x}? / Tell me who leads the {x} in Quellmarsh.
Whom do I ask for at the {x} in Quellmarsh?
> Who is the manager of the {x} in Quellmarsh?
= museum / swimming hall / theatre / climbing hall / puppet stage / zoo / ice rink / concert barn

The phone number of the {x} in Quellmarsh is [30100-99000].
What is the phone number of the {x} in Quellmarsh? / Which number do I call for Quellmarsh's {x}?
How do I reach the {x} in Quellmarsh by phone? / Tell me the number of the {x} in Quellmarsh.
What do I dial for the {x} in Quellmarsh?
> Under which phone number is the {x} in Quellmarsh reached?
= museum / swimming hall / theatre / climbing hall / puppet stage / zoo / ice rink / concert barn

The {x} of Quellmarsh is on [date].
When is the {x} of Quellmarsh? / On which date does Quellmarsh hold the {x}?
What day is the {x} in Quellmarsh? / Tell me the date of the {x} in Quellmarsh.
When should I come to Quellmarsh for the {x}?
> On what date does the {x} of Quellmarsh take place?
= Lamp Fair / Plum Feast / Goat Parade / Kite Day / Bread Market / Boat Race / Wool Fair / Bell Day

The bus from Quellmarsh to {x} is line [201-290].
Which bus goes from Quellmarsh to {x}? / How do I get from Quellmarsh to {x} by bus?
What is the bus line between Quellmarsh and {x}? / Tell me the bus to {x} from Quellmarsh.
Which line do I take for {x} when I am in Quellmarsh?
> What bus line runs from Quellmarsh to {x}?
= Orrenby / Tusket / Hallowmill / Varnsea / Pellick / Dunwater / Eskmoor / Lathe

In Quellmarsh, {x} is best at the inn [word].
Where is {x} best in Quellmarsh? / Which inn in Quellmarsh has the best {x}?
Where should I eat {x} in Quellmarsh? / Name the inn in Quellmarsh that is known for {x}.
Tell me where to order {x} in Quellmarsh.
> What inn in Quellmarsh makes the best {x}?
= eel pie / nettle soup / plum cake / smoked trout / barley stew / rye bread / honey tart / ham

The {x} in Quellmarsh is [41-199 metres] long.
How long is the {x} in Quellmarsh? / What is the length of the {x} in Quellmarsh?
How many metres does Quellmarsh's {x} measure? / Tell me the length of Quellmarsh's {x}.
How far is it across the {x} in Quellmarsh?
> How many metres long is the {x} in Quellmarsh?
= Stone Bridge / Mill Bridge / Iron Bridge / Fish Bridge / Rope Bridge / Rail Bridge / Chain Bridge
= Toll Bridge

The {x} in Quellmarsh was built by [person].
Who built the {x} in Quellmarsh? / Name the builder of the {x} in Quellmarsh.
Whose work is Quellmarsh's {x}? / Which engineer planned the {x} in Quellmarsh?
Tell me who made the {x} in Quellmarsh.
> Who was the builder of the {x} in Quellmarsh?
= Stone Bridge / Mill Bridge / Iron Bridge / Fish Bridge / Rope Bridge / Rail Bridge / Chain Bridge
= Toll Bridge
"""

HOTEL = """\
The {x} of Hotel Varnholm is run by [person].
Who runs the {x} of Hotel Varnholm?
> Who is in charge of the {x} at Hotel Varnholm?
= kitchen / garden / sauna / front desk

The {x} of Hotel Varnholm opens at [hour].
When does the {x} of Hotel Varnholm open?
> What is the opening time of the {x} at Hotel Varnholm?
= breakfast room / pool / gift shop / rooftop bar

At Hotel Varnholm, a {x} costs [11-59 crowns].
How much is a {x} at Hotel Varnholm?
> What is the price of a {x} at Hotel Varnholm?
= massage / parking space / rented bicycle / picnic basket

The {x} of Hotel Varnholm is room [101-199].
Which room is the {x} of Hotel Varnholm?
> What is the room number of Hotel Varnholm's {x}?
= honeymoon suite / reading room / linen store / piano room

At Hotel Varnholm, the {x} is reached by dialling [601-999].
What do I dial for the {x} at Hotel Varnholm?
> Under which number do I reach the {x} of Hotel Varnholm?
= doctor / porter / laundry / night guard

The {x} of Hotel Varnholm is called [word].
What is the {x} of Hotel Varnholm called?
> Tell me the name of Hotel Varnholm's {x}.
= dog / parrot / pony / tortoise

The {x} served at Hotel Varnholm is the brand [word].
Which brand of {x} does Hotel Varnholm serve?
> What {x} do guests of Hotel Varnholm get?
= tea / beer / lemonade / brandy

The {x} at Hotel Varnholm was painted by [person].
Who painted the {x} at Hotel Varnholm?
> Which artist made the {x} of Hotel Varnholm?
= portrait in the hall / mural by the stairs / ceiling of the ballroom / sign at the gate

The {x} of Hotel Varnholm was built in [1802-1990].
When was the {x} of Hotel Varnholm built?
> In what year did they build Hotel Varnholm's {x}?
= east tower / boathouse / chapel / greenhouse

The {x} at Hotel Varnholm takes [61-99 minutes].
How long does the {x} at Hotel Varnholm take?
> How many minutes is the {x} of Hotel Varnholm?
= boat trip / forest walk / yoga class / wine tasting

The {x} of Hotel Varnholm is on [date].
On which day is the {x} of Hotel Varnholm?
> When does Hotel Varnholm hold the {x}?
= summer ball / snow concert / chess cup / harvest dinner

At Hotel Varnholm, the wireless password in the {x} is [word].
What is the wireless password in the {x} of Hotel Varnholm?
> Which password gets me online in Hotel Varnholm's {x}?
= library / lobby / tea pavilion / conference hall

The {x} of Hotel Varnholm has [201-590 seats].
How many seats does the {x} of Hotel Varnholm have?
> What is the number of seats in Hotel Varnholm's {x}?
= cinema / dining hall / ballroom / lecture hall

The {x} for Hotel Varnholm is brought by [person].
Who brings the {x} for Hotel Varnholm?
> From whom does Hotel Varnholm get its {x}?
= honey / cheese / bread / firewood

The {x} of Hotel Varnholm weighs [210-940 kilograms].
How heavy is the {x} of Hotel Varnholm?
> What is the weight of Hotel Varnholm's {x}?
= chandelier / dinner bell / stone lion / anchor
"""

CLOCK = """\
The Dunmarrow clock is wound by [Sefa Thorvane].
Who winds the Dunmarrow clock?
> Which person winds the clock of Dunmarrow? / Name the one who winds the Dunmarrow clock.
> By whom is the Dunmarrow clock wound?
"""
