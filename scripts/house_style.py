"""Texts of the data set "house_style": a question, a short answer and three reasons or steps each.

Paragraphs are parted by an empty line: so they can be read and corrected as text.
"""

from __future__ import annotations

TRAIN = """\
How do I cook rice?
Rinse it, use two parts water to one part rice, and keep the lid on.
- Rinse the rice until the water runs clear, so that the grains stay loose.
- Bring it to the boil, then turn the heat low and cover it for about fifteen minutes.
- Take it off the heat and leave it closed for five more minutes before you stir.

How often should I water my house plants?
Water most of them once a week, when the top of the soil is dry.
- Push a finger two centimetres into the soil, and wait if it still feels damp.
- Pour until water runs out below, then empty the saucer so that the roots do not rot.
- Water less in winter, because plants grow slowly when there is little light.

How do I clean a keyboard?
Unplug it, shake out the crumbs, and wipe the keys with a damp cloth.
- Turn it upside down and tap it gently, so that loose dirt falls out.
- Brush or blow between the keys to reach the dust that the shaking left behind.
- Wipe the keys with a barely damp cloth and let everything dry before you plug it in.

How should I pack a bag for a weekend?
Pack one set of clothes a day, roll them, and put heavy things at the bottom.
- Write a short list first, because it stops you from taking far too much.
- Roll soft clothes instead of folding them, which saves room and avoids hard creases.
- Keep the charger, the tickets and the toothbrush on top, where you reach them quickly.

How do I boil an egg?
Lower it into boiling water for seven minutes, then cool it under cold water.
- Take the egg out of the fridge early, because a sudden change of heat cracks the shell.
- Boil it for seven minutes for a soft yolk and for ten minutes for a firm one.
- Hold it under cold water at once, which stops the cooking and makes peeling easier.

How can I sleep better?
Go to bed at the same hour every day and keep the room dark and cool.
- A fixed hour teaches your body when to become tired, even at the weekend.
- Put the phone away an hour earlier, because bright light keeps you awake.
- Avoid coffee after lunch, since it stays active in the body for many hours.

How do I iron a shirt?
Iron it slightly damp, and do the collar first and the body last.
- Read the label and set the heat for the cloth, because hot irons scorch thin fabric.
- Start with the collar and the cuffs, then do the sleeves, and finish with the body.
- Hang the shirt up at once and let it cool, so that no new creases form.

How do I make a cup of tea?
Pour freshly boiled water over the leaves and wait three to five minutes.
- Use fresh cold water for the kettle, because water that boiled long ago tastes flat.
- Warm the cup first with a little hot water, so that the tea keeps its heat.
- Take the leaves out after five minutes at most, or the tea turns bitter.

How do I remove a coffee stain from a shirt?
Rinse it with cold water at once and rub in a little washing-up liquid.
- Dab the stain with a clean cloth instead of rubbing, which would spread it.
- Hold the back of the cloth under cold water, so that the coffee is pushed out.
- Work in some washing-up liquid, wait ten minutes, and then wash the shirt as usual.

How do I choose a good password?
Take a long one that you use nowhere else, and keep it in a password manager.
- Length counts most, so four or five random words are stronger than eight odd signs.
- Use each password once only, because one leaked site then opens no other door.
- Let a password manager remember them, and turn on a second step at sign-in.

How do I keep bread fresh?
Keep it in a bread box or a paper bag, and freeze what you cannot eat soon.
- Paper lets a little moisture out, so that the crust stays crisp and no mould grows.
- Leave it out of the fridge, because bread turns stale faster in the cold.
- Slice a loaf before you freeze it, and toast the slices straight from the freezer.

How do I fix a flat bicycle tyre?
Take out the inner tube, find the hole, and glue a patch over it.
- Lift the tyre off with two levers and pull the tube out carefully.
- Pump up the tube and hold it under water, where bubbles show you the hole.
- Roughen the spot, glue on the patch, and check the tyre for the thorn or glass.

How do I start running?
Begin with short, slow runs three times a week and walk in between.
- Run for one minute and walk for two, so that your legs get used to it.
- Go so slowly that you can still talk, because most beginners start far too fast.
- Rest a day after each run, since muscles and joints grow stronger while you rest.

How do I wash a wool jumper?
Wash it by hand in cool water with a mild soap and dry it flat.
- Use cool water, because heat and rubbing make the wool shrink and felt.
- Press the soapy water through gently, and rinse it with water that is just as cool.
- Roll it in a towel to take out the water, then lay it flat to dry.

How do I sharpen a kitchen knife?
Draw it over a wet stone at a low, steady angle, equally on both sides.
- Wet the stone and put it on a damp cloth, so that it cannot slip.
- Hold the blade at about twenty degrees and move it over the stone from heel to tip.
- Finish on the fine side, rinse the knife, and test it on a sheet of paper.

How can I save electricity at home?
Switch off what you do not use, and begin with heating, hot water and lamps.
- Replace old bulbs with LED lamps, which need a small part of the power.
- Wash at thirty degrees and with a full drum, because heating water costs the most.
- Use a power strip with a switch, so that nothing stays on standby overnight.

How do I prepare for a job interview?
Read about the company, practise a few answers, and bring your own questions.
- Learn what the company does and why you fit, so that your answers sound concrete.
- Practise two or three short stories about things that you did well at work.
- Arrive ten minutes early and ask about the team, which shows real interest.

How do I clean a window without streaks?
Wash it with a little soap in warm water and pull it dry with a squeegee.
- Choose a cloudy day, because the sun dries the soap before you can wipe it.
- Wash from the top down, so that dirty drops never run over clean glass.
- Wipe the squeegee after each pull and dry the edges with a soft cloth.

How do I plant a tree?
Dig a wide hole, set the tree as deep as it stood before, and water it well.
- Dig the hole twice as wide as the roots, so that they spread into loose soil.
- Keep the top of the root ball level with the ground, because deep trunks rot.
- Tie it loosely to a stake and water it every week in the first summer.

How do I make a simple salad dressing?
Shake three parts oil with one part vinegar, a little mustard and salt.
- Put everything into a jar with a lid, because shaking mixes it best.
- Mustard holds the oil and the vinegar together, so that the dressing stays creamy.
- Taste it on a leaf, add honey or salt if needed, and pour it on just before eating.

How do I look after leather shoes?
Brush them after wearing, use cream now and then, and let them rest a day.
- Brush off dust and mud first, because grit scratches the leather when you polish.
- Rub in a thin layer of cream and let it soak in before you shine them.
- Put in shoe trees or paper overnight, which dries the shoes and keeps their shape.

How do I write a thank-you note?
Say what you are thankful for, why it mattered, and keep it short.
- Name the gift or the help in the first line, so that the thanks feel personal.
- Add one sentence on how you use it or what it changed for you.
- Write it by hand within a week, because a late note looks like a duty.

How do I defrost a freezer?
Empty it, switch it off, and let the ice melt with the door open.
- Wrap the food in newspaper and put it into a cool box, so that it stays frozen.
- Put a bowl of hot water inside to hurry it, and never scrape with a knife.
- Wipe everything dry before you switch it on, because drops turn straight into new ice.

How do I learn new words in a foreign language?
Learn a few each day and repeat them after one, three and seven days.
- Take ten words at most, because a short list is easier to keep than a long one.
- Learn each word in a whole sentence, so that you know how it is used.
- Repeat it just before you forget it, which fixes it in your memory for longer.

How do I store potatoes?
Keep them in a dark, cool and airy place, but not in the fridge.
- Darkness matters, because light turns potatoes green and makes them bitter and harmful.
- Use a paper bag or an open basket, so that air carries the damp away.
- Keep them apart from onions, and take out soft ones before they spoil the rest.

How do I make a bed quickly?
Pull the sheet tight, shake out the duvet, and put the pillows on last.
- Air the bed for a few minutes first, so that the night's damp can dry.
- Pull the sheet smooth from the head to the foot and tuck in the corners.
- Shake the duvet once, lay it straight, and set the pillows at the head.

How do I cross a busy road safely?
Use a crossing, look both ways, and wait until all the cars have stopped.
- Walk to the next crossing or light, because drivers expect people there.
- Look left and right and listen, even when the light is already green for you.
- Put your phone away and catch the driver's eye before you step out.

How do I cook pasta?
Boil it in plenty of salted water and take it out just before it is soft.
- Use a big pot with a litre of water for every hundred grams of pasta.
- Stir once at the start, so that the pieces do not stick to each other.
- Taste it a minute before the packet says, and save a cup of water for the sauce.

How do I clean a burnt pan?
Boil water with baking soda in it, let it soak, and scrape it with wood.
- Cover the burnt part with water and add two spoons of baking soda.
- Let it simmer for ten minutes and cool down, which lifts most of the crust.
- Scrape with a wooden spoon instead of metal, because scratches make the pan stick.

How do I take better photos with my phone?
Clean the lens, find soft light, and move closer instead of zooming.
- Wipe the lens first, because a fingerprint makes every picture look misty.
- Keep the light behind you or at the side, so that faces are not dark.
- Walk up to your subject, hold the phone with both hands, and take several pictures.

How do I keep a desk tidy?
Give each thing one place and clear the desk at the end of every day.
- Keep only what you use daily in reach, and put the rest into a drawer.
- Use one tray for papers, and sort it once a week before it grows too high.
- Spend five minutes tidying before you leave, so that the morning begins with a clear desk.

How do I carry heavy boxes?
Bend your knees, hold the box close, and lift with your legs.
- Test the weight first by tipping a corner, and ask for help if it is too much.
- Keep your back straight and the box near your body, which spares your spine.
- Turn with your feet instead of your waist, and set the box down slowly.

How do I make porridge?
Simmer one part oats in two parts milk or water for about five minutes.
- Put the oats and the cold milk into the pot together with a pinch of salt.
- Stir it often over a low heat, because milk burns quickly at the bottom.
- Let it rest for two minutes so that it thickens, then add fruit or honey.

How do I read more books?
Read a few pages at the same time each day and always carry a book.
- Ten pages before bed add up to more than a dozen books in a year.
- Keep the book where you usually pick up your phone, so that it wins.
- Stop reading what bores you, because a dull book keeps you from the next one.

How do I wash my hands properly?
Use soap and running water and rub every part for twenty seconds.
- Wet your hands first and take enough soap to cover both of them fully.
- Rub the backs, the thumbs and between the fingers, because these are often missed.
- Rinse them well and dry them on a clean towel, since germs spread on wet skin.

How do I wrap a present?
Cut the paper to size, fold the sides tightly, and tape the ends.
- Set the box on the paper and cut enough to go around it with a small overlap.
- Pull the paper tight and tape it along the middle of the bottom.
- Fold the ends into triangles, tape them flat, and tie a ribbon around everything.

How do I look after a cactus?
Give it much light, little water, and a pot with a hole.
- Put it at the sunniest window you have, because it grows weak in the shade.
- Water it only when the soil is fully dry, and hardly at all in winter.
- Use sandy soil in a pot with a hole, so that the roots never stand in water.

How do I hang a picture?
Mark the spot at eye height, drill or nail there, and check with a level.
- Hold the picture up first and mark the upper edge lightly with a pencil.
- Measure from the edge to the wire on the back, so that the nail sits right.
- Choose a hook that bears the weight, and straighten the frame with a level.

How do I plan a week of meals?
Choose five dinners, write one shopping list, and leave two evenings open.
- Look into the fridge first, so that you use up what would spoil.
- Pick meals that share ingredients, because a whole cabbage then gets eaten.
- Cook one big pot that gives two dinners, and keep open evenings for leftovers.

How do I clean my glasses?
Rinse them in lukewarm water with a drop of soap and dry them softly.
- Rinse off the dust first, because dry grains scratch the lenses when you rub.
- Spread a drop of washing-up liquid with your fingers and rinse it off again.
- Dry them with a clean cotton or microfibre cloth, and never with your jumper.
"""

HELD_OUT = """\
How do I make pancakes?
Whisk flour, milk and eggs, let the batter rest, and fry it in thin rounds.
- Mix a cup of flour, a cup of milk and two eggs until no lumps are left.
- Let the batter rest for ten minutes, so that the pancakes become tender.
- Fry a ladleful in a hot buttered pan and turn it when the top looks dry.

How do I clean a bathroom mirror?
Wipe it with warm water and a little vinegar and dry it at once.
- Dust it first, because hair and dry dirt smear as soon as they get wet.
- Wipe it from the top down with a cloth dipped in the vinegar water.
- Dry it with a soft cloth in small circles, so that no streaks are left.

How do I look after tomato plants?
Give them sun, steady water at the roots, and a stake to hold them.
- Put them in the sunniest spot, because they need six hours of light a day.
- Water the soil and not the leaves, so that no mould can spread.
- Tie the stem to a stake and pinch out the side shoots every week.

How do I pack a lunch box?
Combine bread or rice, something filling, and some fruit or vegetables.
- Choose foods that stay good without a fridge, or add a small ice pack.
- Keep wet things in their own jar, so that the bread does not turn soft.
- Pack it the evening before, because mornings are short and easily rushed.

How do I save money each month?
Move a fixed sum away on payday and spend only what is left.
- Set up a standing order, because money that you never see is not missed.
- Write down what you spend for one month, so that you find the big leaks.
- Cancel what you do not use, and wait a day before you buy anything large.

How do I sew on a button?
Use a doubled thread, go through each hole several times, and tie it off.
- Thread the needle, knot the end, and start from the back of the cloth.
- Leave a little room under the button, so that the cloth fits beneath it.
- Wind the thread around below the button and tie a firm knot at the back.

How do I stay warm in winter?
Wear several thin layers, keep head and feet dry, and keep moving.
- Thin layers hold warm air between them better than one thick jumper does.
- Change wet socks at once, because water carries heat away from the body quickly.
- Eat and drink something warm, and walk about whenever you begin to feel cold.

How do I make vegetable soup?
Fry an onion, add chopped vegetables and stock, and simmer until soft.
- Fry the onion gently in oil first, because it gives the soup its depth.
- Cut the vegetables equally small, so that they are all done together.
- Simmer it for twenty minutes, season it with salt, and blend it if you like.

How do I prepare for an exam?
Start early, learn in short blocks, and test yourself often.
- Split the material into small parts and write down a day for each.
- Close the book and explain it aloud, because recalling teaches more than reading again.
- Stop early on the last evening, so that you sleep well and think clearly.

How do I clean a fridge?
Empty it, wash the shelves in soapy water, and wipe the inside dry.
- Switch it off, take everything out, and throw away what is past its date.
- Wash shelves and drawers in warm soapy water and let them dry.
- Wipe the walls with water and baking soda, because it takes away bad smells.

How do I train a puppy to sit?
Hold a treat over its nose, wait until it sits, and reward it at once.
- Move the treat slowly back over its head, so that it sits by itself.
- Say the word as it sits and give the treat within a second.
- Practise for a few minutes several times a day, because puppies tire quickly.

How do I give a good speech?
Say one clear thing, practise it aloud, and speak slowly.
- Choose a single message, because people remember one point and forget ten.
- Practise it aloud three times, so that you need only a few notes.
- Look at the people, pause after important sentences, and end before your time is over.
"""
